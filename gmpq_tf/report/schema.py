"""The data a report needs from a run, and checks of values read from files."""

import difflib
import math
import numbers
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

# Metrics that models may be compared by -> their names in the report.
METRICS = {
    "accuracy": "accuracy",
    "map_07": "mAP (VOC 2007)",
    "loss": "loss",
}
# Metrics that are not shares in 0..1, and of which less is better.
LOSSES = frozenset(["loss"])
REMEDY = (
    "Run its stages and then `python -m train.report`; `make demo` or "
    "`python -m train.demo` runs them all."
)
FLOAT_MAX = sys.float_info.max  # a whole number of JSON may be larger
LONGEST_MESSAGE = 2000


class ReportError(ValueError):
    """A file of the run is missing, or lacks something that a report needs."""


@dataclass(frozen=True)
class ResultRow:
    """One line of the result table.

    Args:
        name: name of the model, such as "uniform W3A3".
        accuracy: top-1 accuracy of the Keras model, or the metric that the summary
            names, 0..1; None without labels.
        bit_ops: multiply-adds times weight bits times activation bits, above 0.
        weight_bytes: bytes of the weights at the policy's bits, above 0.
        file_bytes: bytes of the exported file, or None.
        tflite_accuracy: accuracy of the exported file, 0..1, or None.
        agreement: share of images on which file and Keras agree, 0..1, or None.
        labelled: whether the images had labels; if not, there is no accuracy.
        twin_accuracy: accuracy of the model in the file's integer arithmetic, 0..1, or
            None.
        twin_agreement: share of images on which the file and that model agree, 0..1, or
            None.
        float_agreement: share of images on which the file (else the model) decides as
            the float model, 0..1; known only where there are no labels, else None.
        share: whether what stands for accuracy is a share, 0..1; else any number.

    Raises:
        ReportError: a value has the wrong type or is out of its range.
    """

    name: str
    accuracy: float | None
    bit_ops: float
    weight_bytes: float
    file_bytes: float | None = None
    tflite_accuracy: float | None = None
    agreement: float | None = None
    labelled: bool = True
    twin_accuracy: float | None = None
    twin_agreement: float | None = None
    float_agreement: float | None = None
    share: bool = True

    def __post_init__(self) -> None:
        check_text("name", self.name)
        bare = self.labelled is False
        low, high = (0.0, 1.0) if self.share else (-FLOAT_MAX, FLOAT_MAX)
        check_number("accuracy", self.accuracy, low, high, optional=bare)
        check_number("bit_ops", self.bit_ops, 1)
        check_number("weight_bytes", self.weight_bytes, 1)
        check_number("file_bytes", self.file_bytes, 1, optional=True)
        for name in ("tflite_accuracy", "twin_accuracy"):
            check_number(name, getattr(self, name), low, high, optional=True)
        for name in ("agreement", "twin_agreement", "float_agreement"):
            check_number(name, getattr(self, name), 0, 1, optional=True)


@dataclass(frozen=True)
class Summary:
    """The content of a run's `summary.json`.

    Args:
        dataset: name of the data set the rows were measured on.
        model: name of the model.
        full_precision_bit_ops: bit operations at 32 x 32 bits, above 0.
        rows: the result table, at least one row.
        attribution: name of the attribution file in the workdir, or None.
        bit_ops_budget: the search's budget (at most 1: a fraction of full
            precision; above: a count), or None.
        command: the command that made the run, or None.
        versions: package name -> version.
        metric: meaning of the rows' `accuracy`: a name in `METRICS`.
        split: images that the rows were measured on, "test" or "validation", or None.

    Raises:
        ReportError: a value is of the wrong kind or out of its range.
    """

    dataset: str
    model: str
    full_precision_bit_ops: float
    rows: tuple[ResultRow, ...]
    attribution: str | None = None
    bit_ops_budget: float | None = None
    command: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    metric: str = "accuracy"
    split: str | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ReportError(
                f"metric must be one of {', '.join(METRICS)}. "
                f"Received: metric={self.metric!r:.80}. {REMEDY}"
            )
        check_text("dataset", self.dataset)
        check_text("model", self.model)
        check_number("full_precision_bit_ops", self.full_precision_bit_ops, 1)
        check_number("bit_ops_budget", self.bit_ops_budget, 0, optional=True)
        check_text("attribution", self.attribution, optional=True)
        check_text("command", self.command, optional=True)
        check_text("split", self.split, optional=True)
        check_kind("versions", self.versions, Mapping)
        if not self.rows:
            raise ReportError(
                f"rows must hold at least one row. Received: []. {REMEDY}"
            )

    @property
    def on_images(self) -> str:
        """Says what the rows were measured on: " on test images", or nothing."""
        return f" on {self.split} images" if self.split else ""


@dataclass(frozen=True)
class LayerImportances:
    """Branch probabilities of one searched layer.

    Args:
        weight_bits: candidate bits of the weights.
        weight_probabilities: one for each of them, 0..1.
        activation_bits: candidate bits of the activations.
        activation_probabilities: one for each of them, 0..1.

    Raises:
        ReportError: bits and probabilities differ in number, or are out of range.
    """

    weight_bits: tuple[int, ...]
    weight_probabilities: tuple[float, ...]
    activation_bits: tuple[int, ...]
    activation_probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        for kind in ("weight", "activation"):
            bits = getattr(self, f"{kind}_bits")
            probabilities = getattr(self, f"{kind}_probabilities")
            if not bits or len(bits) != len(probabilities):
                raise ReportError(
                    f"{kind}_probabilities must give one number for each of "
                    f"{kind}_bits. Received: {kind}_bits={bits!r:.80}, "
                    f"{kind}_probabilities={probabilities!r:.80}. Search again."
                )
            for bit, probability in zip(bits, probabilities, strict=True):
                check_number(f"{kind}_bits", bit, 1, 32)
                check_number(f"{kind}_probabilities", probability, 0, 1.001)


@dataclass(frozen=True)
class AttributionMaps:
    """Images, and the attribution maps of several networks for them.

    Args:
        images: [N, H, W, C] uint8, C 1 or 3.
        labels: [N] class numbers.
        maps: name ("teacher", "searched", "uniform") -> [N, h, w], the teacher first.
        rank_distances: name of a student -> rank distance to the teacher's map, [N].
    """

    images: np.ndarray
    labels: np.ndarray
    maps: Mapping[str, np.ndarray]
    rank_distances: Mapping[str, np.ndarray]


def check_kind(key: str, value: object, kind: type) -> None:
    """Requires a JSON value of one type.

    Args:
        key: name of the value, for the error.
        value: the value.
        kind: the type it must have: Mapping, list or str.

    Raises:
        ReportError: it has another type.
    """
    if not isinstance(value, kind):
        names = {"Mapping": "an object", "list": "a list", "str": "a text"}
        raise ReportError(
            f"{key} must be {names[kind.__name__]}. "
            f"Received: {key}={value!r:.80}. {REMEDY}"
        )


def check_text(key: str, value: object, optional: bool = False) -> None:
    """Requires a text that is not empty.

    Args:
        key: name of the value, for the error.
        value: the value.
        optional: whether None is allowed.

    Raises:
        ReportError: it is something else.
    """
    if optional and value is None:
        return
    check_kind(key, value, str)
    if not str(value).strip():
        raise ReportError(f"{key} must not be empty. Received: {key}=''. {REMEDY}")


def check_number(
    key: str,
    value: object,
    low: float,
    high: float = math.inf,
    optional: bool = False,
) -> None:
    """Requires a finite number in a range.

    Args:
        key: name of the value, for the error.
        value: the value.
        low: smallest allowed value.
        high: largest allowed value.
        optional: whether None is allowed.

    Raises:
        ReportError: it is something else.
    """
    if optional and value is None:
        return
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not low <= cast(float, value) <= min(high, FLOAT_MAX):
        between = f"from {low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
        raise ReportError(
            f"{key} must be a number {between}. Received: {key}={value!r:.80}. {REMEDY}"
        )


@contextmanager
def named(where: str) -> Iterator[None]:
    """Puts the name of a file or place in front of errors raised in the block.

    Raises:
        ReportError: the block raised a `ValueError`.
    """
    try:
        yield
    except ValueError as error:
        raise ReportError(f"{where}: {error}"[:LONGEST_MESSAGE]) from error


def take(data: Mapping[str, Any], key: str) -> Any:
    """Looks a required key up.

    Args:
        data: a JSON object.
        key: the key.

    Returns:
        Its value.

    Raises:
        ReportError: the key is missing; the message names the most similar one.
    """
    if key in data:
        return data[key]
    near = difflib.get_close_matches(key, data, n=1)
    hint = f" Did you mean to write {key} for {near[0]}?" if near else ""
    keys = f"{sorted(data)}"[:200]
    raise ReportError(f"key {key!r} is required. Received: keys={keys}.{hint} {REMEDY}")
