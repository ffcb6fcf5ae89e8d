"""Each framework's way to do a case's work, in a worker of :class:`benchmarks.peers.RemoteStep`.

Keras runs on the backend that ``KERAS_BACKEND`` names: the models built layer by layer, torch's weights copied. A call
is one compiled function of the model, without what ``fit`` and ``predict`` do around it: TensorFlow's graph or XLA,
whichever a short trial finds faster, and ``jax.jit``. A training step starts from the first weights every time. Where a
recurrent layer has dropout, every step draws masks, which are not torch's: the loss is checked with nothing dropped.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.operations import operation
from benchmarks.operations.models import DROPOUTS, EMBEDDED, model_of, name_of, torch_model
from benchmarks.registry import Case

RATE, DECAY, EPSILON = 1e-3, 0.9, 1e-7
TRIAL = 5  # calls of either compilation


@dataclass(frozen=True)
class Work:
    """A peer at work: ``call()`` is timed and returns an array; ``restore()`` between calls is not.

    ``known()`` returns the array to check instead of the last call's, where a call draws numbers of its own.
    """

    call: Callable[[], Any]
    restore: Callable[[], Any] = lambda: None
    known: Callable[[], Any] | None = None


at_work: list[Work] = []  # what this process does
output: list[Any] = []  # what its last call gave


def start(function: str, case: Mapping[str, Any], threads: int) -> None:
    """Have a function of this module get ready for a case."""
    torch.set_num_threads(threads)
    at_work[:] = [globals()[function](Case.from_dict(case), threads)]


def seconds(calls: int) -> list[float]:
    """Return the seconds of each of so many calls."""
    (work,), found = at_work, []
    for _ in range(calls):
        work.restore()
        began = time.perf_counter()
        output[:] = [work.call()]
        found.append(time.perf_counter() - began)
    return found


def results() -> Any:
    """Return the last call's output, or what is known instead, as lists of numbers."""
    (work,) = at_work
    if work.known is not None:
        work.restore()
        output[:] = [work.known()]
    return np.asarray(output[0], dtype=np.float64).tolist()


def openvino(case: Case, threads: int) -> Work:
    """Return the inference by the torch model converted, in float32, tuned for latency."""
    import openvino

    model, batch = plain(case)
    converted = openvino.convert_model(model, example_input=batch, input=[tuple(batch.shape)])
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # CPUs with bfloat16 would take that
    }
    request = openvino.Core().compile_model(converted, "CPU", options).create_infer_request()
    array = batch.numpy()
    return Work(lambda: request.infer([array], share_inputs=True, share_outputs=True)[0])


def onnxruntime(case: Case, threads: int) -> Work:
    """Return the inference by the torch model exported, on the CPU's kernels."""
    import onnxruntime

    model, batch = plain(case)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    with tempfile.TemporaryDirectory(prefix="seqconv-onnx-") as folder:
        path = Path(folder, "model.onnx")
        torch.onnx.export(model, (batch,), path, input_names=["batch"], dynamo=True)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"batch": batch.numpy()}
    return Work(lambda: session.run(None, feed)[0])


def plain(case: Case) -> tuple[nn.Module, Tensor]:
    """Return the torch model of a case, for inference, and its batch."""
    kind = operation(case.operation)
    return kind.definition(case).eval(), kind.inputs(case, "random")["batch"]


def keras(case: Case, threads: int) -> Work:
    """Return Keras' predictions, or a step of its training, on the case's batch."""
    import keras

    inputs = operation(case.operation).inputs(case, "random")
    batch, targets = inputs["batch"].numpy(), inputs["targets"].numpy()
    if batch.dtype == np.int64:
        batch = batch.astype(np.int32)
    on_backend = on_jax
    if keras.backend.backend() == "tensorflow":
        on_backend = on_tensorflow
        limit_tensorflow(threads)
    model = keras_model(name_of(case), case.shape["C"], case.shape["L"])
    copy_weights(torch_model(case), model)
    loss = None
    if case.mode == "training_step":
        binary = model_of(case).loss is F.binary_cross_entropy_with_logits
        loss = keras.losses.BinaryCrossentropy(from_logits=True) if binary else keras.losses.MeanAbsoluteError()
    work = on_backend(model, batch, targets[:, None], loss)
    if not (loss and model_of(case).drops):
        return replace(work, known=None)
    losses = {float(work.call()) for _ in range(3) if work.restore() is None}
    if len(losses) < 3:
        raise RuntimeError(f"dropout draws the same masks at every step: losses {losses}")
    return work


def keras_model(name: str, width: int, length: int) -> Any:
    """Return one of the notebook's models or Kim's, which give ``(N, 1)``, for a ``width`` of words or columns."""
    import keras
    from keras import layers

    if name == "textcnn":
        tokens = keras.Input((length,), dtype="int32")
        embedded = layers.Embedding(width, EMBEDDED)(tokens)
        convs = [layers.Conv1D(100, size, activation="relu")(embedded) for size in (3, 4, 5)]
        maxima = layers.Concatenate()([layers.GlobalMaxPooling1D()(one) for one in convs])
        return keras.Model(tokens, layers.Dense(1)(layers.Dropout(0.5)(maxima)))
    dropouts = {"dropout": DROPOUTS["input_dropout"], "recurrent_dropout": DROPOUTS["recurrent_dropout"]}
    last = layers.GRU(32, **(dropouts if name.endswith("_dropout") else {})) if "gru" in name else None
    if name == "jena_gru_dropout":
        return keras.Sequential([keras.Input((length, width)), last, layers.Dense(1)])
    if name not in ("imdb_convnet", "jena_convnet", "conv_gru", "conv_gru_dropout"):
        raise ValueError(f"there is no Keras model of {name}")
    words = name == "imdb_convnet"
    first = [keras.Input((length,), dtype="int32"), layers.Embedding(width, EMBEDDED)]
    stack = first if words else [keras.Input((length, width))]
    size, pools = (7, (5,)) if words else (5, (3,) if last else (3, 3))
    for pool in pools:
        stack += [layers.Conv1D(32, size, activation="relu"), layers.MaxPooling1D(pool)]
    stack += [layers.Conv1D(32, size, activation="relu"), last or layers.GlobalMaxPooling1D(), layers.Dense(1)]
    return keras.Sequential(stack)


def copy_weights(module: nn.Module, model: Any) -> None:
    """Give a Keras model the weights of torch's, whose layers come in the same order."""
    given = [one for one in module.modules() if isinstance(one, (nn.Embedding, nn.Conv1d, nn.GRU, nn.Linear))]
    own = [layer for layer in model.layers if layer.weights]
    for source, layer in zip(given, own, strict=True):
        if isinstance(source, nn.GRU):
            layer.set_weights(gru_arrays(source))
            continue
        weight = source.weight.detach().numpy()
        if isinstance(source, nn.Embedding):
            layer.set_weights([weight])
        else:
            assert source.bias is not None
            # Convolutions (O, C, K) to (K, C, O), dense layers (O, C) to (C, O).
            layer.set_weights([weight.T, source.bias.detach().numpy()])


def gru_arrays(gru: nn.GRU) -> list[Any]:
    """Return the weights of a GRU of one layer as Keras has them: gates z, r, h side by side, both biases in one."""
    weight_ih, weight_hh, *biases = (
        torch.cat([one.chunk(3)[gate] for gate in (1, 0, 2)]).detach().numpy() for one in gru.all_weights[0]
    )
    return [weight_ih.T, weight_hh.T, np.stack(biases)]


def optimizer(rate: float = RATE) -> Any:
    """Return Keras' RMSprop with the notebook's settings."""
    import keras

    return keras.optimizers.RMSprop(rate, rho=DECAY, epsilon=EPSILON)


def limit_tensorflow(threads: int) -> None:
    """Have TensorFlow use so many threads, which it can be told before it has done anything."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def on_tensorflow(model: Any, batch: Any, targets: Any, loss: Any) -> Work:
    """Return the work as a graph of TensorFlow's, compiled by XLA where that is faster."""
    import tensorflow as tf

    inputs, outputs = tf.constant(batch), tf.constant(targets)
    variables = [*model.trainable_variables]
    first = [np.array(one) for one in variables]

    def restore() -> None:
        for one, value in zip(variables, first, strict=True):
            one.assign(value)

    def compiled(jit: bool) -> Work:
        if loss is None:
            predict = tf.function(lambda given: model(given, training=False), jit_compile=jit)
            return Work(lambda: predict(inputs).numpy()[:, 0])
        rule = optimizer()
        rule.build(variables)

        @tf.function(jit_compile=jit)  # type: ignore[untyped-decorator, unused-ignore]
        def step(given: Any, wanted: Any) -> Any:
            with tf.GradientTape() as tape:
                value = loss(wanted, model(given, training=True))
            rule.apply(tape.gradient(value, variables))
            return value

        known = tf.function(lambda: loss(outputs, model(inputs, training=False)))
        return Work(lambda: step(inputs, outputs).numpy(), restore, lambda: known().numpy())

    return min((compiled(False), compiled(True)), key=trial)


def on_jax(model: Any, batch: Any, targets: Any, loss: Any) -> Work:
    """Return the work compiled by ``jax.jit``."""
    import jax

    inputs, outputs = jax.numpy.asarray(batch), jax.numpy.asarray(targets)
    weights = [one.value for one in model.trainable_variables]
    others = [one.value for one in model.non_trainable_variables]  # also the states of random generators
    if loss is None:
        predict = jax.jit(lambda weights, given: model.stateless_call(weights, others, given, training=False)[0])
        return Work(lambda: np.asarray(predict(weights, inputs))[:, 0])
    rule = optimizer()
    rule.build(model.trainable_variables)
    state = [one.value for one in rule.variables]

    def value_of(weights: Any, others: Any, given: Any, wanted: Any, training: bool = True) -> Any:
        predictions, others = model.stateless_call(weights, others, given, training=training)
        return loss(wanted, predictions), others

    @jax.jit
    def step(weights: Any, others: Any, state: Any, given: Any, wanted: Any) -> Any:
        (value, others), gradients = jax.value_and_grad(value_of, has_aux=True)(weights, others, given, wanted)
        return value, others, rule.stateless_apply(state, gradients, weights)

    def call() -> Any:
        value, others[:], _ = jax.block_until_ready(step(weights, others, state, inputs, outputs))
        return np.asarray(value)

    return Work(call, known=lambda: np.asarray(value_of(weights, others, inputs, outputs, training=False)[0]))


def trial(work: Work) -> float:
    """Return the median seconds of a few calls, after one that compiles."""
    at_work[:] = [work]
    return statistics.median(seconds(1 + TRIAL)[1:])
