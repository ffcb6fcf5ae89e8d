"""Goldens of Keras' GRU and LSTM, which tests read; with Keras and TensorFlow installed, ``main`` makes them.

    python -m tests.kernels.keras_goldens

``keras_recurrent.npz`` holds what Keras 3.15.1 computed in float64 on TensorFlow 2.21.0; its entry ``versions`` says
the same. Numbers are drawn in float32, which halves the file and lets float32 kernels read them exactly. Biases are
not zero.

As Keras 3.15.1 is written (``layers/rnn/gru.py``, ``lstm.py``, ``dropout_rnn_cell.py``):

- ``recurrent_dropout`` sets ``implementation=1``, and then each gate has its own mask of the input and of the state.
- ``dropout`` alone leaves ``implementation=2``, and one mask of the input serves all gates.
- A layer draws its masks before its first step, and every step takes them. The carried state is not masked.
- The directions of ``Bidirectional`` are two layers, which draw their own masks of the same input: equal ones where
  the layer was given a seed, else others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PATH = Path(__file__).with_name("keras_recurrent.npz")
CELLS = ("gru", "gru_reset_before", "lstm")
# Torch's gates among Keras': r, z, n among z, r, h, and i, f, g, o among i, f, c, o.
ORDER = {"gru": [1, 0, 2], "gru_reset_before": [1, 0, 2], "lstm": [0, 1, 2, 3]}
STEPS, BATCH, FEATURES, HIDDEN = 5, 3, 2, 4


class Golden(NamedTuple):
    """What one layer was given and what came of it, in Keras' layouts: (N, L, C), gates z, r, h or i, f, c, o.

    ``states``, ``last`` and their gradients are (D, N, H) each. ``input_mask`` is (1, N, C) or (G, N, C),
    ``recurrent_mask`` (G, N, H). ``gradients`` are those of input, states and weights, in one row, for the gradients
    ``upstream`` of output and last states.
    """

    input: np.ndarray
    states: list[np.ndarray]
    weights: list[np.ndarray]
    output: np.ndarray
    last: list[np.ndarray]
    upstream: list[np.ndarray]
    gradients: list[np.ndarray]
    input_mask: np.ndarray | None = None
    recurrent_mask: np.ndarray | None = None
    lengths: np.ndarray | None = None


def load() -> dict[str, Golden]:
    """Return all goldens by their names, a cell of the kernels and what it was given: ``"gru, dropout"``."""
    found: dict[str, dict[str, Any]] = {}
    with np.load(PATH) as file:
        for key in file.files:
            name, _, field = key.partition("/")
            field, _, index = field.partition("/")
            if index:
                found.setdefault(name, {}).setdefault(field, []).append(file[key])
            elif field:
                found.setdefault(name, {})[field] = file[key]
    return {name: Golden(**fields) for name, fields in found.items()}


def main() -> None:
    """Run Keras' layers and write the goldens."""
    import keras
    import tensorflow as tf

    keras.config.set_floatx("float64")
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32).astype(np.float64)

    def golden(cell: str, bidirectional: bool = False, **options: Any) -> Golden:
        if cell != "lstm":
            options["reset_after"] = cell == "gru"
        kind = keras.layers.LSTM if cell == "lstm" else keras.layers.GRU
        layer = inner = kind(HIDDEN, return_sequences=True, return_state=True, seed=1, **options)
        if bidirectional:
            layer = keras.layers.Bidirectional(layer)
        layer.build((BATCH, STEPS, FEATURES))
        layer.set_weights([normal(*weight.shape) for weight in layer.weights])
        drawn = recorded_masks(inner.cell)

        directions, kinds = 2 if bidirectional else 1, 2 if cell == "lstm" else 1
        lengths = np.array([STEPS, 2, 3]) if bidirectional else None
        mask = None if lengths is None else tf.constant(np.arange(STEPS) < lengths[:, None])
        sequences = tf.constant(normal(BATCH, STEPS, FEATURES))
        states = [tf.constant(normal(BATCH, HIDDEN)) for _ in range(directions * kinds)]
        upstream = [normal(BATCH, STEPS, directions * HIDDEN), *(normal(BATCH, HIDDEN) for _ in states)]
        weights = [weight.value for weight in layer.trainable_weights]
        with tf.GradientTape() as tape:
            tape.watch([sequences, *states])
            results = layer(sequences, initial_state=states, mask=mask, training=True)
            loss = sum(tf.reduce_sum(one * gradient) for one, gradient in zip(results, upstream, strict=True))
        gradients = [one.numpy() for one in tape.gradient(loss, [sequences, *states, *weights])]

        def by_kind(flat: list[Any]) -> list[np.ndarray]:
            return [np.stack(flat[kind::kinds]) for kind in range(kinds)]

        return Golden(
            sequences.numpy(),
            by_kind(states),
            layer.get_weights(),
            results[0].numpy(),
            by_kind(results[1:]),
            [upstream[0], *by_kind(upstream[1:])],
            [gradients[0], *by_kind(gradients[1 : 1 + len(states)]), *gradients[1 + len(states) :]],
            drawn.get("dropout"),
            drawn.get("recurrent_dropout"),
            lengths,
        )

    arrays = {"versions": np.array(f"Keras {keras.__version__}, TensorFlow {tf.__version__}")}
    for cell in CELLS:
        for name, options in {
            "dropout": {"dropout": 0.25, "recurrent_dropout": 0.5},
            "dropout of the input, no bias": {"dropout": 0.25, "use_bias": False},
            "bidirectional": {"bidirectional": True},
        }.items():
            for field, value in golden(cell, **options)._asdict().items():
                parts = {f"/{i:02}": one for i, one in enumerate(value)} if isinstance(value, list) else {"": value}
                arrays |= {f"{cell}, {name}/{field}{i}": one for i, one in parts.items() if one is not None}
    np.savez_compressed(PATH, **arrays)
    print(f"{arrays['versions']}: {len(arrays)} arrays, {PATH.stat().st_size} bytes in {PATH}")


def recorded_masks(cell: Any) -> dict[str, np.ndarray]:
    """Return a dictionary that gets the masks which a cell draws, (1, N, ·) or (G, N, ·).

    A cell that asks again must be given the same masks: one draw serves all steps.
    """
    masks: dict[str, np.ndarray] = {}

    def record(kind: str) -> None:
        get = getattr(cell, f"get_{kind}_mask")

        def recorded(step_input: Any) -> Any:
            drawn = get(step_input)
            if drawn is not None:
                mask = np.stack(drawn if isinstance(drawn, list) else [drawn])
                np.testing.assert_array_equal(masks.setdefault(kind, mask), mask)
            return drawn

        setattr(cell, f"get_{kind}_mask", recorded)

    for kind in ("dropout", "recurrent_dropout"):
        record(kind)
    return masks


if __name__ == "__main__":
    main()
