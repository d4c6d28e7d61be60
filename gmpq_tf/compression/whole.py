"""`gmpq.compress`: from a float model to a verified file, without training."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gmpq_tf.budget import FILE_BYTES, parse_budget
from gmpq_tf.compression.corrections import (
    AUTO,
    Batches,
    Mended,
    Say,
    check_correction,
    make_student,
)
from gmpq_tf.compression.space import suited_space
from gmpq_tf.data import InputScaling
from gmpq_tf.export.tflite.arguments import FLOAT_LAYERS, check_choice
from gmpq_tf.export.tflite.exporter import ExportReport, export_tflite
from gmpq_tf.export.tflite.lowering import check_kinds
from gmpq_tf.graph import read_graph
from gmpq_tf.inputs import InputError
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.search.case import Held, SearchData
from gmpq_tf.search.judge import Judge
from gmpq_tf.search.policies import search_policy
from gmpq_tf.space import SearchSpace
from gmpq_tf.transform.gates import split_gates
from gmpq_tf.transform.rewrite import flattened, split_activations

BITS = 8  # of every layer, without a budget
IMAGES, BATCH = 512, 64  # that ranges are set on
# Corrections keep the tensors of a layer for all images: so many bytes of them.
LARGEST_BYTES, LEAST_IMAGES = 6e8, 64
FEW, ENOUGH = 8, 100  # images: fewer are refused; fewer are warned of
HELD = 2  # times the images that are measured on: the others choose corrections
# Below this a file is refused. In networks of fifty layers a few per cent of close
# decisions change both ways; the file's own accuracy is measured.
LEAST_AGREEMENT = 0.8


@dataclass(frozen=True)
class Compressed:
    """What `compress` made.

    Args:
        student: the Keras model that the file was written from; it can be trained on.
        policy: bits of every layer.
        path: of the `.tflite` file.
        file_bytes: its size.
        storage: "fast", "packed" or "smallest".
        correction: what mended the student, a key of `CORRECTIONS`.
        images: how many the figures below are of.
        float_accuracy: share of the float model's decisions that are right; None
            without labels, and where outputs are plain numbers.
        accuracy: likewise of the student.
        tflite_accuracy: likewise of the file.
        agreement: share of decisions on which student and file agree; None of numbers.
        report: everything that the export found.
    """

    student: keras.Model
    policy: BitwidthPolicy
    path: Path
    file_bytes: int
    storage: str
    correction: str
    images: int
    float_accuracy: float | None
    accuracy: float | None
    tflite_accuracy: float | None
    agreement: float | None
    report: ExportReport

    def __str__(self) -> str:
        """One line."""
        said = [f"{self.path}: {self.file_bytes} bytes, {self.storage}"]
        if self.float_accuracy is not None and self.tflite_accuracy is not None:
            said.append(
                f"{100 * self.tflite_accuracy:.2f} % right (float "
                f"{100 * self.float_accuracy:.2f} %)"
            )
        if self.agreement is not None:
            said.append(f"agreement with Keras {100 * self.agreement:.2f} %")
        return f"{', '.join(said)}; {self.images} images"


def compress(
    model: keras.Model,
    data: Any,
    budget: Any = None,
    path: str | os.PathLike[str] = "model.tflite",
    *,
    test_data: Any = None,
    space: SearchSpace | None = None,
    storage: str | None = None,
    latency_table: str | None = None,
    correction: str = AUTO,
    calibration_images: int = IMAGES,
    table_images: int | None = None,
    journal: str | os.PathLike[str] | None = None,
    seed: int = 0,
    scaling: InputScaling | str | None = None,
    class_names: Sequence[str] | None = None,
    float_layers: str = "refuse",
    least_agreement: float = LEAST_AGREEMENT,
    latency_runs: int = 0,
    progress: str = "auto",
) -> Compressed:
    """Compresses a model to a budget without training, and writes a verified file.

        result = gmpq.compress(model, images, budget="60kB")

    Measures what each choice of bits costs (`search_policy`, "loss_delta"), calibrates,
    corrects, and exports. Labels, where there are any, are counted and never learned
    from.

    Args:
        model: built functional model, trained; it is not modified.
        data: images like those of training, as the model takes them, in the same order
            each time: an array, (inputs, labels) arrays, or a list of batches, a
            `tf.data.Dataset` or a `keras.utils.PyDataset` of inputs or of (inputs,
            labels). A few hundred.
        budget: what the model may cost: "60kB", "W4A4", "2.5ms", several, ...; see
            `gmpq_tf.budget`. None: eight bits everywhere.
        path: the `.tflite` file to make or to replace.
        test_data: what accuracy and agreement are measured on, likewise; None: `data`.
        space: candidate bit-widths; None: those of `suited_space`.
        storage: "fast", "packed" or "smallest"; None: that of the budget.
        latency_table: JSON file of `gmpq-latency`, for a budget of milliseconds.
        correction: "auto", or a key of `CORRECTIONS`.
        calibration_images: first images, that ranges are set on.
        table_images: that choices are measured on; None: as many as the time allows.
        journal: JSON-lines file of measurements: an interrupted search goes on from it.
        seed: of everything random.
        scaling: how pixels become inputs, for the file's metadata.
        class_names: likewise, one a score.
        float_layers: "refuse" layers that have no integer counterpart, such as gelu or
            attention, or "allow" them to be computed in float.
        least_agreement: share of equal decisions below which nothing is written.
        latency_runs: timed runs of every storage, for the report; 0: none.
        progress: "auto", "bar", "line" or "none".

    Returns:
        Student, policy, file and figures.

    Raises:
        BudgetError: no policy keeps the budget; what can be had is said.
        ExportError: a layer has no integer counterpart, or the file deviates.
        InputError: too few images, or images that do not fit the model.
        GraphError: a model that cannot be read.
    """
    check_correction(correction)
    check_exportable(model, float_layers)
    flat = flattened(model)
    source = SearchData(flat, data)
    count = min(calibration_images, correction_images(flat))
    held = source.first(HELD * count)
    check_images(len(held))
    tested = source if test_data is None else SearchData(flat, test_data)
    policy = BitwidthPolicy.uniform(model, BITS, BITS)
    if budget is not None:
        policy = search_policy(
            model,
            data,
            "loss_delta",
            budget,
            space or suited_space(flat, budget),
            seed,
            journal=journal,
            calibration_images=calibration_images,
            storage=storage,
            latency_table=latency_table,
            progress=progress,
            images=table_images,
        ).policy
    mended = correct(model, policy, source, held, correction, _say(progress))
    report = export_tflite(
        mended.student,
        path,
        storage or storage_for(budget),
        verify_data=(x if y is None else (x, y) for x, y in tested.batches()),
        class_names=class_names,
        scaling=scaling,
        float_layers=float_layers,
        least_agreement=least_agreement,
        latency_runs=latency_runs,
    )
    return Compressed(
        student=mended.student,
        policy=policy,
        path=Path(path),
        file_bytes=report.file_bytes,
        storage=report.storage,
        correction=mended.correction,
        images=report.images,
        float_accuracy=accuracy(flat, tested),
        accuracy=report.keras_accuracy,
        tflite_accuracy=report.tflite_accuracy,
        agreement=report.agreement,
        report=report,
    )


def correct(
    model: keras.Model,
    policy: BitwidthPolicy,
    source: SearchData,
    held: Held,
    correction: str = AUTO,
    say: Say = lambda text: None,
) -> Mended:
    """A student of a policy, corrected on the first images, chosen on the others.

    Args:
        model: the float model.
        policy: of its layers.
        source: what reads the images.
        held: `HELD` times as many as `correction_images`, or fewer; of fewer than 64
            three of four are measured on.
        correction: "auto", or a key of `CORRECTIONS`.
        say: told what has been done.
    """
    count = len(held) // HELD if len(held) >= BATCH else max(3 * len(held) // 4, 1)
    images = _batches(source, [a[:count] for a in held.inputs])
    others = _batches(source, [a[count:] for a in held.inputs])
    return make_student(model, policy, images, others or images, correction, say)


def correction_images(model: keras.Model) -> int:
    """How many images of a model's largest tensor fit into `LARGEST_BYTES`."""
    shapes = read_graph(flattened(model)).shapes
    largest = max(4 * np.prod([d or 1 for d in shape[1:]]) for shape in shapes)
    return max(int(LARGEST_BYTES / largest), LEAST_IMAGES)


def storage_for(budget: Any) -> str:
    """The storage that a budget is about: "fast" unless bytes of the file are."""
    resources = {each.resource for each in parse_budget(budget)} if budget else set()
    return "smallest" if FILE_BYTES in resources else "fast"


def check_exportable(model: keras.Model, float_layers: str = "refuse") -> None:
    """Refuses a model of which a layer has no integer counterpart.

    Args:
        model: the float model.
        float_layers: "refuse" such layers, or "allow" those that a file can compute in
            float.

    Raises:
        ExportError: there is one that is not allowed; all are named.
    """
    check_choice("float_layers", float_layers, FLOAT_LAYERS)
    graph = split_gates(split_activations(read_graph(flattened(model))))
    check_kinds(graph, float_layers == "allow")


def check_images(count: int) -> None:
    """Refuses too few images to measure anything on, and warns of few.

    Args:
        count: of images.

    Raises:
        InputError: they are too few.
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


def accuracy(model: keras.Model, data: SearchData) -> float | None:
    """Share of the decisions of a model that are right.

    Args:
        model: the float model.
        data: the images.

    Returns:
        None without labels, and where outputs are plain numbers.
    """
    right = []
    for inputs, labels in data.batches():
        found = keras.tree.flatten(model(inputs, training=False))
        outputs = [np.asarray(each) for each in found]
        judge = Judge(model, outputs, labels)
        if labels is None or not judge.decides:
            return None
        right.append(judge.right(outputs, judge.targets))
    return float(np.concatenate(right).mean())


def _batches(source: SearchData, inputs: Sequence[np.ndarray]) -> Batches:
    """Batches as the model takes them; none where they do not fill its own size."""
    size = source.inputs.batch_size or BATCH
    starts = range(0, len(inputs[0]), size)
    found = [[a[first : first + size] for a in inputs] for first in starts]
    if source.inputs.batch_size:
        found = [arrays for arrays in found if len(arrays[0]) == size]
    return [source.inputs.structured(arrays) for arrays in found]


def _say(progress: str) -> Say:
    return (lambda text: None) if progress == "none" else print
