"""`gmpq.compress`: from a float model to a verified file, without training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from gmpq_tf.budget import FILE_BYTES, parse_budget
from gmpq_tf.compression.checks import (
    BATCH,
    beside_float,
    check_exportable,
    check_images,
    check_labels,
    float_figures,
)
from gmpq_tf.compression.corrections import (
    AUTO,
    Batches,
    Mended,
    Say,
    check_correction,
    make_student,
)
from gmpq_tf.compression.space import suited_space
from gmpq_tf.cost_tables import TableOptions
from gmpq_tf.data import InputScaling
from gmpq_tf.export.tflite.arguments import (
    STORAGES,
    check_choice,
    check_effort,
    check_path,
)
from gmpq_tf.export.tflite.exporter import ExportReport, export_tflite
from gmpq_tf.export.tflite.metadata import check_class_names, facts
from gmpq_tf.export.tflite.outputs import Outputs
from gmpq_tf.graph import check_float, read_graph
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.search.case import Held, SearchData
from gmpq_tf.search.policies import search_policy
from gmpq_tf.space import SearchSpace
from gmpq_tf.task import OutputKind, outputs_of
from gmpq_tf.transform.batches import inference_batch
from gmpq_tf.transform.rewrite import flattened

BITS = 8  # bits of every layer without a budget
IMAGES = 512  # images that set ranges
# Largest size, in bytes, of a layer's tensors of all images that corrections keep.
LARGEST_BYTES, LEAST_IMAGES = 6e8, 64
HELD = 2  # half of the images measure corrections, the other half compare them
# With less agreement a file is refused. It is not stricter, because in networks of
# fifty layers a few per cent of close decisions change, both ways; the file's own
# accuracy is measured too.
LEAST_AGREEMENT = 0.8


@dataclass(frozen=True)
class Compressed:
    """The result of `compress`.

    Args:
        student: the Keras model of the file; it can be trained further.
        policy: bits of every layer.
        path: the `.tflite` file.
        file_bytes: size of the file, in bytes.
        storage: "fast", "packed" or "smallest".
        correction: the correction that was used, a key of `CORRECTIONS`.
        images: number of images on which the figures below were measured.
        float_accuracy: share of right decisions of the float model; None without
            labels, and for outputs that are plain numbers.
        accuracy: the same for the student.
        tflite_accuracy: the same for the file.
        float_error: mean distance of the float model's numbers from their labels, where
            one output is plain numbers; else None.
        error: the same for the student.
        tflite_error: the same for the file.
        agreement: share of decisions on which student and file agree; if no output is a
            decision, of numbers within four steps.
        float_agreement: share of decisions on which float model and file agree, of the
            output where it is smallest; None with labels, and for plain numbers.
        report: the full report of the export.
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
    float_error: float | None
    error: float | None
    tflite_error: float | None
    agreement: float | None
    float_agreement: float | None
    report: ExportReport

    def __str__(self) -> str:
        """One line with file, size, accuracies, errors and agreement."""
        said = [f"{self.path}: {self.file_bytes} bytes, {self.storage}"]
        if self.float_accuracy is not None and self.tflite_accuracy is not None:
            said.append(
                f"{100 * self.tflite_accuracy:.2f} % right (float "
                f"{100 * self.float_accuracy:.2f} %)"
            )
        if self.float_error is not None and self.tflite_error is not None:
            said.append(
                f"{self.tflite_error:.4g} from the labels (float "
                f"{self.float_error:.4g})"
            )
        if self.float_agreement is not None:
            said.append(f"{100 * self.float_agreement:.2f} % as the float model")
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
    output_kinds: str | OutputKind | Mapping | Sequence | None = None,
    float_layers: str = "refuse",
    least_agreement: float = LEAST_AGREEMENT,
    latency_runs: int = 0,
    progress: str = "auto",
) -> Compressed:
    """Compresses a model to a budget without training, and writes a verified file.

        result = gmpq.compress(model, images, budget="60kB")

    It measures how much each choice of bits changes the outputs (`search_policy`,
    "loss_delta"), calibrates, corrects, and exports. Labels are optional, and nothing
    is trained on them: they measure accuracy, and help to compare corrections
    (`make_student`).

    Args:
        model: built functional model, trained; it is not modified. If it is compiled,
            its loss tells what the outputs mean (classes, numbers) where the last
            layers and labels do not.
        data: images like those of training, as the model takes them, in the same order
            each time: an array, (inputs, labels) arrays, or a list of batches, a
            `tf.data.Dataset` or a `keras.utils.PyDataset` of inputs or of (inputs,
            labels). A few hundred.
        budget: what the model may cost: "60kB", "W4A4", "2.5ms", several, ...; see
            `gmpq_tf.budget`. None: 8 bits everywhere.
        path: the `.tflite` file to create or to replace.
        test_data: images like `data` on which accuracy and agreement are measured;
            None: `data`.
        space: candidate bit-widths; None: those of `suited_space`.
        storage: "fast", "packed" or "smallest"; None: that of the budget.
        latency_table: JSON file of `gmpq-latency`, for a budget of milliseconds.
        correction: "auto", or a key of `CORRECTIONS`.
        calibration_images: number of first images that set ranges.
        table_images: number of images that measure choices; None: as many as take
            reasonable time.
        journal: JSON-lines file of measurements, from which an interrupted search is
            resumed.
        seed: seed of everything random.
        scaling: how pixels become inputs, for the file's metadata.
        class_names: names of the scores, for the file's metadata.
        output_kinds: what the outputs mean: "classes" (the largest score decides),
            "binary" (each number is a probability, decided at 0.5), "binary_logit"
            (decided at 0) or "numbers"; for all outputs, or a dict by name, or a list.
            None: it is derived from graph, loss and labels.
        float_layers: "refuse" layers that have no integer counterpart, such as gelu or
            attention, or "allow" them to be computed in float.
        least_agreement: nothing is written if a smaller share of decisions is equal.
        latency_runs: timed runs of every storage, for the report; 0: none.
        progress: "auto", "bar", "line" or "none".

    Returns:
        Student, policy, file and figures.

    Raises:
        BudgetError: no policy keeps the budget; the message has the possible range.
        ExportError: a layer has no integer counterpart, or the file deviates.
        InputError: there are too few images, or they do not fit the model.
        TaskError: labels do not fit the outputs, or these are not finite; there is no
            such kind of output.
        GraphError: the model cannot be read, or is quantized already.
    """
    # Arguments of the export are checked too: it comes after minutes of measuring.
    check_correction(correction)
    check_path(path)
    check_effort(least_agreement, latency_runs)
    if storage is not None:
        check_choice("storage", storage, STORAGES)
    known = facts(class_names, scaling)
    check_float(model)
    check_exportable(model, float_layers, output_kinds)
    flat = flattened(model)
    outputs_of(flat, output_kinds)
    if len(flat.outputs) == 1:
        check_class_names([tuple(flat.outputs[0].shape)], known)
    source = SearchData(flat, data)
    count = min(calibration_images, correction_images(flat))
    held = source.first(HELD * count)
    check_images(len(held))
    tested = source if test_data is None else SearchData(flat, test_data)
    check_labels(flat, source, held, output_kinds)
    # Refuses images and labels that do not fit.
    figures = float_figures(flat, tested, output_kinds)
    policy = BitwidthPolicy.uniform(model, BITS, BITS)
    if budget is not None:
        policy = search_policy(
            model,
            data,
            "loss_delta",
            budget,
            space or suited_space(flat, budget, TableOptions(storage, latency_table)),
            seed,
            journal=journal,
            calibration_images=calibration_images,
            storage=storage,
            latency_table=latency_table,
            progress=progress,
            output_kinds=output_kinds,
            images=table_images,
        ).policy
    mended = correct(
        model, policy, source, held, correction, _say(progress), output_kinds
    )
    report = export_tflite(
        mended.student,
        path,
        storage or storage_for(budget),
        verify_data=(x if y is None else (x, y) for x, y in tested.batches()),
        class_names=class_names,
        scaling=scaling,
        output_kinds=output_kinds,
        float_layers=float_layers,
        least_agreement=least_agreement,
        latency_runs=latency_runs,
    )
    beside = None if figures else beside_float(flat, path, tested, output_kinds)
    return Compressed(
        student=mended.student,
        policy=policy,
        path=Path(path),
        file_bytes=report.file_bytes,
        storage=report.storage,
        correction=mended.correction,
        images=report.images,
        float_accuracy=None if figures is None else figures.keras_accuracy,
        accuracy=report.keras_accuracy,
        tflite_accuracy=report.tflite_accuracy,
        float_error=_error(figures, "keras_error"),
        error=_error(report, "keras_error"),
        tflite_error=_error(report, "tflite_error"),
        agreement=report.agreement,
        float_agreement=None if beside is None else beside.agreement,
        report=report,
    )


def correct(
    model: keras.Model,
    policy: BitwidthPolicy,
    source: SearchData,
    held: Held,
    correction: str = AUTO,
    say: Say = lambda text: None,
    output_kinds: Any = None,
) -> Mended:
    """Makes a student, corrects it on the first images, compares on the others.

    Args:
        model: the float model.
        policy: bits of its layers.
        source: reads the images.
        held: up to `HELD` times `correction_images` images; the first half is used for
            correcting, or the first three quarters of fewer than 64 images.
        correction: "auto", or a key of `CORRECTIONS`.
        say: called with a text after each step.
        output_kinds: what the outputs mean, as `outputs_of` takes it; None: derived.
    """
    count = len(held) // HELD if len(held) >= BATCH else max(3 * len(held) // 4, 1)
    size = inference_batch(read_graph(flattened(model)))
    images = _batches(source, [a[:count] for a in held.inputs], size)
    others = _batches(source, [a[count:] for a in held.inputs], size)
    labels = None
    if others and held.labels is not None:
        end = count + sum(len(keras.tree.flatten(batch)[0]) for batch in others)
        labels = keras.tree.map_structure(
            lambda a: None if a is None else a[count:end], held.labels
        )
    compared = others or images
    return make_student(
        model, policy, images, compared, correction, say, labels, output_kinds
    )


def correction_images(model: keras.Model) -> int:
    """Number of images for which a model's largest tensor fits into `LARGEST_BYTES`."""
    shapes = read_graph(flattened(model)).shapes
    largest = max(4 * np.prod([d or 1 for d in shape[1:]]) for shape in shapes)
    return max(int(LARGEST_BYTES / largest), LEAST_IMAGES)


def storage_for(budget: Any) -> str:
    """The storage for a budget: "smallest" for bytes of the file, else "fast"."""
    resources = {each.resource for each in parse_budget(budget)} if budget else set()
    return "smallest" if FILE_BYTES in resources else "fast"


def _error(figures: Outputs | None, name: str) -> float | None:
    """A figure of the only output that has it; None if there is none, or several."""
    rows = figures.outputs if figures is not None else ()
    known = [getattr(r, name) for r in rows if getattr(r, name) is not None]
    return known[0] if len(known) == 1 else None


def _batches(source: SearchData, inputs: Sequence[np.ndarray], size: int) -> Batches:
    """Batches in the model's structure; with a fixed batch size only full ones."""
    starts = range(0, len(inputs[0]), size)
    found = [[a[first : first + size] for a in inputs] for first in starts]
    if source.inputs.batch_size:
        found = [arrays for arrays in found if len(arrays[0]) == size]
    return [source.inputs.structured(arrays) for arrays in found]


def _say(progress: str) -> Say:
    return (lambda text: None) if progress == "none" else print
