"""MobileNetV2 with ImageNet's weights and new last layers, where training starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gmpq_tf.data import Dataset
from gmpq_tf.models import build_model, build_pretrained
from gmpq_tf.task.tasks import task_of
from gmpq_tf.train.recipe import make_loss

NORMALIZED = 512  # images that statistics of the folded network are measured on
PASSES = 2  # over the images, that features are kept of


def start_of(
    network: str,
    shape: tuple[int, int, int],
    classes: int,
    weights: Path,
    data: Dataset,
    epochs: int,
) -> keras.Model:
    """A network with ImageNet's weights, and new layers trained on its features.

    Args:
        network: of `build_model`, `mobilenet_v2` or a detector with that backbone.
        shape: of one image.
        classes: how many the set has.
        weights: those of ImageNet.
        data: the set.
        epochs: passes over the images of training what is new.
    """
    model = build_pretrained(network, shape, classes, weights).model
    unfold(model, data.calibration(NORMALIZED))
    known = {layer.name for layer in build_model("mobilenet_v2", shape, 1).layers}
    new = [
        layer
        for layer in model.layers
        if layer.name not in known or layer.name.startswith("head")
    ]
    train_new(model, new, data, epochs)
    return model


def train_new(model: keras.Model, new: list[Any], data: Dataset, epochs: int) -> None:
    """Train the last layers on the features of the others, which stay as they are."""
    tensors = [x for layer in new for x in keras.tree.flatten(layer.input)]
    edges = list(
        {id(x): x for x in tensors if x._keras_history.operation not in new}.values()
    )
    trunk, rest = keras.Model(model.input, edges), keras.Model(edges, model.output)
    encoded = dataclasses.replace(data, encode=task_of(model).encode)
    seen = [
        (trunk(inputs, training=False), targets)
        for inputs, targets in encoded.train(0, PASSES)
    ]
    features, targets = (
        keras.tree.map_structure(lambda *parts: np.concatenate(parts), *each)
        for each in zip(*seen, strict=True)
    )
    steps = len(seen) * epochs // PASSES
    rate = keras.optimizers.schedules.CosineDecay(0.002, steps)
    rest.compile(keras.optimizers.Adam(rate), make_loss(model))
    rest.fit(features, targets, 32, epochs // PASSES, verbose=2)


def unfold(model: keras.Model, batches: Any) -> None:
    """Let normalizations with folded statistics normalize: same function, measured.

    The weights that there are have their batch normalizations folded in, with mean 0
    and variance 1, so that training, which normalizes by the batch, would begin with
    another function.
    """
    normalizations = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    probe = keras.Model(model.input, [layer.input for layer in normalizations])
    count, sums = 0, None
    for batch in batches:
        inputs = np.asarray(batch[0] if isinstance(batch, tuple) else batch)
        values = [np.asarray(x, "float64") for x in probe(inputs, training=False)]
        moments = [
            np.stack([x.mean((0, 1, 2)), (x**2).mean((0, 1, 2))]) for x in values
        ]
        before = [0.0] * len(moments) if sums is None else sums
        sums = [len(inputs) * m + b for m, b in zip(moments, before, strict=True)]
        count += len(inputs)
    for layer, total in zip(normalizations, sums or [], strict=True):
        mean, square = total / count
        variance = np.maximum(square - mean**2, 0)
        gamma, beta, old_mean, old_variance = (
            np.asarray(w) for w in layer.get_weights()
        )
        scale = gamma / np.sqrt(old_variance + layer.epsilon)
        layer.set_weights(
            [
                scale * np.sqrt(variance + layer.epsilon),
                beta + scale * (mean - old_mean),
                mean,
                variance,
            ]
        )
