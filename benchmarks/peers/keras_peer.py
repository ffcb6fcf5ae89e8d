"""Keras on the backend that ``KERAS_BACKEND`` names: the models built layer by layer, torch's weights copied.

A call is one compiled function of the model, without what ``fit`` and ``predict`` do around it: TensorFlow's graph or
XLA, whichever a short trial finds faster, and ``jax.jit``. A training step starts from the first weights every time.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import keras
import numpy as np
import torch.nn.functional as F
from keras import layers
from torch import nn

from benchmarks.operations.models import model_of, name_of, torch_model
from benchmarks.operations.torch_models import TorchTextCNN
from benchmarks.peers import Work
from benchmarks.registry import Case, operation

__all__ = ["build", "imdb_convnet", "limit_tensorflow", "make", "optimizer"]

RATE, DECAY, EPSILON = 1e-3, 0.9, 1e-7
TRIAL = 5  # calls of either compilation


def make(case: Case, threads: int) -> Work:
    """Return the model's predictions, or a step of its training, on the case's batch."""
    inputs = operation(case.operation).inputs(case, "random")
    batch, targets = inputs["batch"].numpy(), inputs["targets"].numpy()
    if batch.dtype == np.int64:
        batch = batch.astype(np.int32)
    on_backend = on_jax
    if keras.backend.backend() == "tensorflow":
        on_backend = on_tensorflow
        limit_tensorflow(threads)
    loss = loss_of(case) if case.mode == "training_step" else None
    return on_backend(build(case), batch, targets[:, None], loss)


def build(case: Case) -> Any:
    """Return the case's model with torch's weights."""
    module = torch_model(case)
    words_or_columns, length = case.shape["C"], case.shape["L"]
    if name_of(case) == "imdb_convnet":
        model = imdb_convnet(words_or_columns, length)
    elif name_of(case) == "jena_convnet":
        model = jena_convnet(words_or_columns, length)
    elif isinstance(module, TorchTextCNN):
        model = textcnn(words_or_columns, length)
    else:
        raise ValueError(f"there is no Keras model of {case.name}")
    copy_weights(module, model)
    return model


def imdb_convnet(words: int, length: int) -> Any:
    """Return the notebook's review model, which gives logits ``(N, 1)``."""
    return keras.Sequential(
        [
            keras.Input((length,), dtype="int32"),
            layers.Embedding(words, 128),
            layers.Conv1D(32, 7, activation="relu"),
            layers.MaxPooling1D(5),
            layers.Conv1D(32, 7, activation="relu"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(1),
        ]
    )


def jena_convnet(columns: int, length: int) -> Any:
    """Return the notebook's temperature model."""
    return keras.Sequential(
        [
            keras.Input((length, columns)),
            layers.Conv1D(32, 5, activation="relu"),
            layers.MaxPooling1D(3),
            layers.Conv1D(32, 5, activation="relu"),
            layers.MaxPooling1D(3),
            layers.Conv1D(32, 5, activation="relu"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(1),
        ]
    )


def textcnn(words: int, length: int) -> Any:
    """Return Kim's model."""
    tokens = keras.Input((length,), dtype="int32")
    embedded = layers.Embedding(words, 128)(tokens)
    features = [
        layers.GlobalMaxPooling1D()(layers.Conv1D(100, size, activation="relu")(embedded)) for size in (3, 4, 5)
    ]
    dropped = layers.Dropout(0.5)(layers.Concatenate()(features))
    return keras.Model(tokens, layers.Dense(1)(dropped))


def copy_weights(module: nn.Module, model: Any) -> None:
    """Give a Keras model the weights of torch's, whose layers come in the same order."""
    given = [one for one in module.modules() if isinstance(one, (nn.Embedding, nn.Conv1d, nn.Linear))]
    own = [layer for layer in model.layers if layer.weights]
    for source, layer in zip(given, own, strict=True):
        weight = source.weight.detach().numpy()
        if isinstance(source, nn.Embedding):
            layer.set_weights([weight])
        else:
            assert source.bias is not None
            # Convolutions (O, C, K) to (K, C, O), dense layers (O, C) to (C, O).
            layer.set_weights([weight.T, source.bias.detach().numpy()])


def loss_of(case: Case) -> Any:
    """Return the loss of the case's model."""
    binary = model_of(case).loss is F.binary_cross_entropy_with_logits
    return keras.losses.BinaryCrossentropy(from_logits=True) if binary else keras.losses.MeanAbsoluteError()


def optimizer(rate: float = RATE) -> Any:
    """Return RMSprop with the notebook's settings."""
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

        return Work(lambda: step(inputs, outputs).numpy(), restore)

    return min((compiled(False), compiled(True)), key=trial)


def on_jax(model: Any, batch: Any, targets: Any, loss: Any) -> Work:
    """Return the work compiled by ``jax.jit``."""
    import jax

    inputs, outputs = jax.numpy.asarray(batch), jax.numpy.asarray(targets)
    weights = [one.value for one in model.trainable_variables]
    others = [one.value for one in model.non_trainable_variables]
    if loss is None:
        predict = jax.jit(lambda weights, given: model.stateless_call(weights, others, given, training=False)[0])
        return Work(lambda: np.asarray(predict(weights, inputs))[:, 0])
    rule = optimizer()
    rule.build(model.trainable_variables)
    state = [one.value for one in rule.variables]

    def value_of(weights: Any, given: Any, wanted: Any) -> Any:
        return loss(wanted, model.stateless_call(weights, others, given, training=True)[0])

    @jax.jit
    def step(weights: Any, state: Any, given: Any, wanted: Any) -> Any:
        value, gradients = jax.value_and_grad(value_of)(weights, given, wanted)
        return value, rule.stateless_apply(state, gradients, weights)

    def call() -> Any:
        value, _ = jax.block_until_ready(step(weights, state, inputs, outputs))
        return np.asarray(value)

    return Work(call)


def trial(work: Work) -> float:
    """Return the median seconds of a few calls, after one that compiles."""
    seconds = []
    for _ in range(1 + TRIAL):
        work.restore()
        start = time.perf_counter()
        work.call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
