"""Readers of the files a run leaves in its workdir; each checks what it returns."""

import difflib
import math
import numbers
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from gmpq_tf.files import parse_json, read_jsonl, read_text
from gmpq_tf.policy import BitwidthPolicy

SUMMARY = "summary.json"
POLICY = "search/policy.json"
IMPORTANCES = "search/importances.json"
COST = "cost.json"
REMEDY = "Run `make demo` or `python -m train.demo` first."

FLOAT_MAX = sys.float_info.max  # a whole number of JSON may be larger
LONGEST_MESSAGE = 2000
MAX_ARRAY_BYTES = 200_000_000  # of an .npz, unpacked; eight images take 10 MB


class ReportError(ValueError):
    """A file of the run is missing or does not say what a report needs."""


@dataclass(frozen=True)
class ResultRow:
    """One line of the result table.

    Args:
        name: what was measured, such as "uniform W3A3".
        accuracy: top-1 of the Keras model, 0..1.
        bit_ops: MACs times bits times bits, more than 0.
        weight_bytes: bytes of the weights at the policy's bits, more than 0.
        file_bytes: bytes of the shipped file, or None.
        tflite_accuracy: top-1 of the shipped file, 0..1, or None.
        agreement: share of images on which file and Keras agree, 0..1, or None.

    Raises:
        ReportError: a value is of the wrong kind or out of its range.
    """

    name: str
    accuracy: float
    bit_ops: float
    weight_bytes: float
    file_bytes: float | None = None
    tflite_accuracy: float | None = None
    agreement: float | None = None

    def __post_init__(self) -> None:
        check_text("name", self.name)
        check_number("accuracy", self.accuracy, 0, 1)
        check_number("bit_ops", self.bit_ops, 1)
        check_number("weight_bytes", self.weight_bytes, 1)
        check_number("file_bytes", self.file_bytes, 1, optional=True)
        check_number("tflite_accuracy", self.tflite_accuracy, 0, 1, optional=True)
        check_number("agreement", self.agreement, 0, 1, optional=True)


@dataclass(frozen=True)
class Summary:
    """What `summary.json` says of a run.

    Args:
        dataset: name of the data set the rows were measured on.
        model: name of the model.
        full_precision_bit_ops: bit operations at 32 x 32 bits, more than 0.
        rows: the result table, at least one row.
        attribution: name of the attribution file in the workdir, or None.
        bit_ops_budget: the search's budget (at most 1: a fraction of full
            precision; above: a count), or None.
        command: the command that made the run, or None.
        versions: package name -> version.

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

    def __post_init__(self) -> None:
        check_text("dataset", self.dataset)
        check_text("model", self.model)
        check_number("full_precision_bit_ops", self.full_precision_bit_ops, 1)
        check_number("bit_ops_budget", self.bit_ops_budget, 0, optional=True)
        check_text("attribution", self.attribution, optional=True)
        check_text("command", self.command, optional=True)
        check_kind("versions", self.versions, Mapping)
        if not self.rows:
            raise ReportError(
                f"rows must hold at least one row. Received: []. {REMEDY}"
            )


@dataclass(frozen=True)
class LayerImportances:
    """Branch probabilities of one searched layer.

    Args:
        weight_bits: candidate bits of the weights.
        weight_probabilities: one for each of them, 0..1.
        activation_bits: candidate bits of the activations.
        activation_probabilities: one for each of them, 0..1.

    Raises:
        ReportError: bits and probabilities do not pair up, or are out of range.
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
    """Images and what the networks look at in them.

    Args:
        images: [N, H, W, C] uint8, C 1 or 3.
        labels: [N] class numbers.
        maps: name ("teacher", "searched", "uniform") -> [N, h, w], the teacher first.
        rank_distances: student name -> [N].
    """

    images: np.ndarray
    labels: np.ndarray
    maps: Mapping[str, np.ndarray]
    rank_distances: Mapping[str, np.ndarray]


def check_kind(key: str, value: object, kind: type) -> None:
    """Requires a JSON value of one kind.

    Args:
        key: what the value is called.
        value: the value.
        kind: what it must be: Mapping, list or str.

    Raises:
        ReportError: it is of another.
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
        key: what the value is called.
        value: the value.
        optional: whether None will do.

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
        key: what the value is called.
        value: the value.
        low: the least it may be.
        high: the most it may be.
        optional: whether None will do.

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
def _named(where: str) -> Iterator[None]:
    """Puts the place in front of what a reader below found wrong there."""
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
        its value.

    Raises:
        ReportError: the key is not there; the nearest one that is, is named.
    """
    if key in data:
        return data[key]
    near = difflib.get_close_matches(key, data, n=1)
    hint = f" Did you mean to write {key} for {near[0]}?" if near else ""
    keys = f"{sorted(data)}"[:200]
    raise ReportError(f"key {key!r} is required. Received: keys={keys}.{hint} {REMEDY}")


def read_summary(workdir: str | Path) -> Summary:
    """Reads the results of a run.

    Args:
        workdir: the folder of the run.

    Returns:
        its summary.

    Raises:
        ReportError: `summary.json` is missing, not JSON or of the wrong shape.
    """
    data = _read_object(Path(workdir), SUMMARY)
    with _named(SUMMARY):
        return _summary(data)


def _summary(data: Mapping[str, Any]) -> Summary:
    check_kind("rows", take(data, "rows"), list)
    return Summary(
        dataset=take(data, "dataset"),
        model=take(data, "model"),
        full_precision_bit_ops=take(data, "full_precision_bit_ops"),
        rows=tuple(_row(index, row) for index, row in enumerate(data["rows"])),
        attribution=data.get("attribution"),
        bit_ops_budget=data.get("bit_ops_budget"),
        command=data.get("command"),
        versions=data.get("versions", {}),
    )


def _row(index: int, data: Any) -> ResultRow:
    check_kind(f"rows[{index}]", data, Mapping)
    required = ("name", "accuracy", "bit_ops", "weight_bytes")
    optional = ("file_bytes", "tflite_accuracy", "agreement")
    with _named(f"rows[{index}]"):
        return ResultRow(
            **{key: take(data, key) for key in required},
            **{key: data.get(key) for key in optional},
        )


def read_metrics(workdir: str | Path, stage: str) -> dict[int, dict[str, float]]:
    """Reads what a stage logged after each epoch.

    Args:
        workdir: the folder of the run.
        stage: "pretrain", "search" or another folder in it.

    Returns:
        epoch (from 0, ascending) -> metric name -> value; numbers only. Where a resumed
        run logged an epoch twice, the later one.

    Raises:
        ReportError: `metrics.jsonl` is missing, empty, or a line of it is broken.
    """
    name = f"{stage}/metrics.jsonl"
    _require(Path(workdir), name)
    with _named(name):
        entries = read_jsonl(Path(workdir) / name)
        epochs = {_epoch(entry): _numbers(entry) for entry in entries}
    if not epochs:
        raise ReportError(
            f"{name} must hold an epoch. Received: an empty file. {REMEDY}"
        )
    return dict(sorted(epochs.items()))


def _epoch(entry: Mapping[str, Any]) -> int:
    check_number("epoch", take(entry, "epoch"), 0)
    return int(entry["epoch"])


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """Keeps NaN and infinity: a diverged run should be seen to have diverged."""
    return {
        key: _float(key, value)
        for key, value in entry.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _float(key: str, value: float) -> float:
    try:
        return float(value)
    except OverflowError as error:  # a whole number of JSON may be that large
        raise ReportError(
            f"{key} must be at most {FLOAT_MAX:g}. Received: {key}={value!r:.80}. "
            f"{REMEDY}"
        ) from error


def read_policy(workdir: str | Path) -> BitwidthPolicy:
    """Reads the policy a search found.

    Args:
        workdir: the folder of the run.

    Returns:
        the policy.

    Raises:
        ReportError: `search/policy.json` is missing or no policy.
    """
    _require(Path(workdir), POLICY)
    with _named("the policy"):
        return BitwidthPolicy.load(Path(workdir) / POLICY)


def read_macs(workdir: str | Path) -> dict[str, float]:
    """Reads the multiply-adds of each layer, also of those that stay float.

    Args:
        workdir: the folder of the run.

    Returns:
        layer name -> MACs.

    Raises:
        ReportError: `cost.json` is missing or of the wrong shape.
    """
    data = _read_object(Path(workdir), COST)
    with _named(COST):
        return {**_macs(data, "layers"), **_macs(data, "float_layers")}


def read_float_layers(workdir: str | Path) -> dict[str, float]:
    """Reads the multiply-adds of the layers that stay float, as `read_macs` does."""
    data = _read_object(Path(workdir), COST)
    with _named(COST):
        return _macs(data, "float_layers")


def _macs(data: Mapping, key: str) -> dict[str, float]:
    # Runs of before float layers were counted name none.
    layers = take(data, key) if key == "layers" else data.get(key, [])
    check_kind(key, layers, list)
    return dict(_layer_macs(f"{key}[{i}]", layer) for i, layer in enumerate(layers))


def _layer_macs(place: str, layer: Any) -> tuple[str, float]:
    check_kind(place, layer, Mapping)
    check_text(f"{place}.name", take(layer, "name"))
    check_number(f"{place}.macs", take(layer, "macs"), 0)
    return layer["name"], layer["macs"]


def read_importances(workdir: str | Path) -> dict[str, LayerImportances]:
    """Reads how sure the search was of each layer's bits.

    Args:
        workdir: the folder of the run.

    Returns:
        layer name -> its branch probabilities.

    Raises:
        ReportError: `search/importances.json` is missing or of the wrong shape.
    """
    data = _read_object(Path(workdir), IMPORTANCES)
    with _named(IMPORTANCES):
        layers = take(data, "layers")
        check_kind("layers", layers, Mapping)
        if not layers:
            raise ReportError(f"layers must not be empty. Received: {{}}. {REMEDY}")
        return {name: _layer_importances(name, entry) for name, entry in layers.items()}


def _layer_importances(name: str, entry: Any) -> LayerImportances:
    check_kind(f"layers.{name}", entry, Mapping)
    keys = LayerImportances.__dataclass_fields__
    with _named(f"layers.{name}"):
        for key in keys:
            check_kind(key, take(entry, key), list)
        return LayerImportances(**{key: tuple(entry[key]) for key in keys})


def read_attribution(workdir: str | Path, name: str) -> AttributionMaps:
    """Reads images and attribution maps.

    Args:
        workdir: the folder of the run.
        name: file name in it: an .npz with images [N, H, W, C] uint8, labels [N],
            teacher and student_* maps [N, h, w], rank_distance_* [N].

    Returns:
        the maps.

    Raises:
        ReportError: the file is missing, unreadable, or an array is of the wrong shape.
    """
    arrays = _read_arrays(Path(workdir), name)
    images, labels = take(arrays, "images"), take(arrays, "labels")
    _check_images(images)
    maps = {"teacher": take(arrays, "teacher"), **_prefixed(arrays, "student_")}
    distances = _prefixed(arrays, "rank_distance_")
    for key, array in maps.items():
        _check_array(f"map {key}", array, (len(images), None, None))
    for key, array in {"labels": labels, **distances}.items():
        _check_array(key, array, (len(images),))
    return AttributionMaps(images, labels, maps, distances)


def _prefixed(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {
        key.removeprefix(prefix): array
        for key, array in arrays.items()
        if key.startswith(prefix)
    }


def _check_images(images: np.ndarray) -> None:
    _check_array("images", images, (None, None, None, None))
    if images.dtype != np.uint8 or images.shape[-1] not in (1, 3) or not images.size:
        raise ReportError(
            "images must be uint8 [N, H, W, C] with C 1 or 3 and N 1 or more. "
            f"Received: dtype={images.dtype}, shape={images.shape}. {REMEDY}"
        )


def _check_array(key: str, array: np.ndarray, shape: Iterable[int | None]) -> None:
    wanted = tuple(shape)
    fits = array.ndim == len(wanted) and all(
        want in (None, got) for want, got in zip(wanted, array.shape, strict=True)
    )
    if not fits or array.dtype.kind not in "biuf":
        raise ReportError(
            f"{key} must be numbers of shape {wanted} (None: any). "
            f"Received: dtype={array.dtype}, shape={array.shape}. {REMEDY}"
        )


def _read_arrays(workdir: Path, name: str) -> dict[str, np.ndarray]:
    path = workdir / name
    if not _is_inside(path, workdir):
        raise ReportError(
            f"attribution must name a file in the workdir. Received: attribution="
            f"{name!r:.200}. {REMEDY}"
        )
    _require(workdir, name)
    try:
        _check_unpacked_size(path)
        with np.load(path, allow_pickle=False) as arrays:
            return {key: np.asarray(arrays[key]) for key in arrays.files}
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds.
        raise ReportError(
            f"{name} must be an .npz of plain arrays. "
            f"Received: {str(error)[:200]}. {REMEDY}"
        ) from error


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a link to itself, a name too long
        return False


def _check_unpacked_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_ARRAY_BYTES:
        raise ValueError(f"{size} bytes unpacked, at most {MAX_ARRAY_BYTES} are read")


def _read_object(workdir: Path, name: str) -> Mapping[str, Any]:
    return _parse(name, _read_text(workdir, name))


def _require(workdir: Path, name: str) -> None:
    try:
        found = (workdir / name).is_file()
    except OSError:  # such as a name too long
        found = False
    if not found:
        raise ReportError(
            f"{name} must be in the workdir of the run. "
            f"Received: no file {workdir / name!s:.500}. {REMEDY}"
        )


def _read_text(workdir: Path, name: str) -> str:
    _require(workdir, name)
    with _named(name):
        return read_text(workdir / name)


def _parse(where: str, text: str) -> Mapping[str, Any]:
    try:
        data = parse_json(text)
    except ValueError as error:
        raise ReportError(
            f"{where} must be JSON. Received: {text!r:.40} ({error}). {REMEDY}"
        ) from error
    check_kind(where, data, Mapping)
    return data
