"""What `gmpq.compress` refuses before any work, and how well the float model does."""

from __future__ import annotations

import os
import warnings
from typing import Any

import keras
import numpy as np

from gmpq_tf.compression.corrections import labels_of_all
from gmpq_tf.export.tflite.arguments import FLOAT_LAYERS, check_choice
from gmpq_tf.export.tflite.lowering import check_kinds
from gmpq_tf.export.tflite.outputs import Outputs, Tally, as_arrays, summary
from gmpq_tf.export.tflite.region_files import check_options
from gmpq_tf.export.tflite.region_parts import region_parts
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.graph import read_graph
from gmpq_tf.inputs import InputError
from gmpq_tf.search.case import Held, SearchData
from gmpq_tf.search.judge import Judge
from gmpq_tf.task import match_labels, outputs_of
from gmpq_tf.transform.forward import predictor
from gmpq_tf.transform.gates import split_gates
from gmpq_tf.transform.rewrite import flattened, split_activations

BATCH = 64  # images
FEW, ENOUGH = 8, 100  # with fewer images: an error; a warning


def check_exportable(
    model: keras.Model, float_layers: str = "refuse", output_kinds: Any = None
) -> None:
    """Refuses a model with layers that have no integer counterpart.

    Args:
        model: the float model.
        float_layers: "refuse" such layers, or "allow" those that a file can compute in
            float.
        output_kinds: what the outputs mean; None: derived.

    Raises:
        ExportError: there are layers that are not allowed (all are named), or the model
            becomes two files, which do not have these options.
    """
    check_choice("float_layers", float_layers, FLOAT_LAYERS)
    if region_parts(model) is not None:
        check_options({"float_layers": float_layers, "output_kinds": output_kinds})
    graph = split_gates(split_activations(read_graph(flattened(model))))
    check_kinds(graph, float_layers == "allow")


def check_images(count: int) -> None:
    """Refuses fewer than 8 images, and warns of fewer than 100.

    Args:
        count: number of images.

    Raises:
        InputError: there are fewer than 8.
    """
    if count < FEW:
        raise InputError(
            f"Compressing needs {FEW} images at least, and {ENOUGH} or more are "
            f"better. Received: {count}. Add images like those that the model was "
            "trained on."
        )
    if count < ENOUGH:
        warnings.warn(
            f"Only {count} images set the ranges and choose the bits: {ENOUGH} or more "
            "are better.",
            stacklevel=3,
        )


def check_labels(
    model: keras.Model, source: SearchData, held: Held, output_kinds: Any = None
) -> None:
    """Refuses labels that do not fit, before corrections are compared by them.

    Args:
        model: the float model.
        source: reads the images.
        held: images that corrections are measured and compared on.
        output_kinds: what the outputs mean, as `outputs_of` takes it; None: derived.

    Raises:
        TaskError: labels do not fit the outputs.
    """
    if labels_of_all(model, held.labels) is None:
        return
    size = source.inputs.batch_size or 1
    one = source.inputs.structured([a[:1].repeat(size, axis=0) for a in held.inputs])
    shapes = [each.shape[1:] for each in as_arrays(model(one, training=False))]
    for first in range(0, len(held), BATCH):
        labels = keras.tree.map_structure(
            lambda a, first=first: None if a is None else a[first : first + BATCH],
            held.labels,
        )
        images = min(BATCH, len(held) - first)
        zeros = [np.zeros((images, *s), "float32") for s in shapes]
        Judge(model, zeros, labels, output_kinds)


def float_figures(
    model: keras.Model, data: SearchData, output_kinds: Any = None
) -> Outputs | None:
    """Accuracy and errors of the float model, measured as those of the file are.

    Args:
        model: the float model.
        data: the images.
        output_kinds: what the outputs mean, as `outputs_of` takes it; None: derived.

    Returns:
        The figures, the float model standing for Keras and for the file; None without
        labels.

    Raises:
        InputError: there are no images, or they do not fit the model.
        TaskError: labels do not fit the outputs, or these are not finite.
    """
    tallies, images = list[Tally](), 0
    for inputs, labels in data.batches():
        data.inputs.check_finite(data.inputs.read(inputs))
        found = as_arrays(model(inputs, training=False))
        if labels is None:
            return None
        described = [] if tallies else outputs_of(model, output_kinds, labels)
        tallies = tallies or [Tally(output, None) for output in described]
        known = match_labels(model, labels)
        for tally, scores, own in zip(tallies, found, known, strict=True):
            tally.add(scores, scores, own)
        images += len(found[0])
    if not images:
        raise InputError(
            "Accuracy needs images to be measured on. "
            "Received: test_data without any. Pass some, or leave it out."
        )
    return summary(images, [tally.report() for tally in tallies])


def beside_float(
    model: keras.Model,
    path: str | os.PathLike[str],
    data: SearchData,
    output_kinds: Any = None,
) -> Outputs | None:
    """Compares the outputs of a file with those of the float model.

    Args:
        model: the float model.
        path: the file.
        data: the images.
        output_kinds: what the outputs mean, as `outputs_of` takes it; None: derived.

    Returns:
        The figures, the float model standing for Keras; None for a detector in two
        files, which return objects.
    """
    if region_parts(model) is not None:
        return None
    file, predict = TFLiteModel(path), predictor(model)
    tallies = [Tally(output, None) for output in outputs_of(model, output_kinds)]
    images = 0
    for inputs, _ in data.batches():
        found = as_arrays(predict(inputs))
        received = as_arrays(file.predict(data.inputs.read(inputs)))
        for tally, want, have in zip(tallies, found, received, strict=True):
            tally.add(want, have)
        images += len(found[0])
    return summary(images, [tally.report() for tally in tallies])
