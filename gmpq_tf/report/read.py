"""Reads and checks the files that a run leaves in its workdir."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmpq_tf.files import parse_json, read_jsonl, read_text
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report.layout import COST, IMPORTANCES, METRICS, SEARCHED_POLICY, SUMMARY
from gmpq_tf.report.schema import (
    FLOAT_MAX,
    LOSSES,
    REMEDY,
    LayerImportances,
    ReportError,
    ResultRow,
    Summary,
    check_kind,
    check_number,
    check_text,
    named,
    take,
)


def read_summary(workdir: str | Path) -> Summary:
    """Reads the results of a run.

    Args:
        workdir: the folder of the run.

    Returns:
        its summary.

    Raises:
        ReportError: `summary.json` is missing, not JSON or has the wrong form.
    """
    data = _read_object(Path(workdir), SUMMARY)
    with named(SUMMARY):
        return _summary(data)


def _summary(data: Mapping[str, Any]) -> Summary:
    check_kind("rows", take(data, "rows"), list)
    share = data.get("metric", "accuracy") not in LOSSES
    return Summary(
        dataset=take(data, "dataset"),
        model=take(data, "model"),
        full_precision_bit_ops=take(data, "full_precision_bit_ops"),
        rows=tuple(_row(i, row, share) for i, row in enumerate(data["rows"])),
        attribution=data.get("attribution"),
        bit_ops_budget=data.get("bit_ops_budget"),
        command=data.get("command"),
        versions=data.get("versions", {}),
        metric=data.get("metric", "accuracy"),
        split=data.get("split"),
    )


def _row(index: int, data: Any, share: bool) -> ResultRow:
    check_kind(f"rows[{index}]", data, Mapping)
    required = ("name", "accuracy", "bit_ops", "weight_bytes")
    optional = (
        *("file_bytes", "tflite_accuracy", "agreement"),
        *("twin_accuracy", "twin_agreement", "float_agreement"),
    )
    with named(f"rows[{index}]"):
        return ResultRow(
            **{key: take(data, key) for key in required},
            **{key: data.get(key) for key in optional},
            labelled=data.get("labelled", True),
            share=share,
        )


def read_metrics(workdir: str | Path, stage: str) -> dict[int, dict[str, float]]:
    """Reads the metrics that a stage logged after each epoch.

    Args:
        workdir: the folder of the run.
        stage: "pretrain", "search" or another folder in it.

    Returns:
        epoch (from 0, ascending) -> metric name -> value; numbers only. If an epoch
        was logged twice, the later entry.

    Raises:
        ReportError: `metrics.jsonl` is missing, empty, or a line of it is broken.
    """
    name = f"{stage}/{METRICS}"
    require(Path(workdir), name)
    with named(name):
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
    except OverflowError as error:  # whole numbers in JSON may exceed floats
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
        ReportError: `search/policy.json` is missing or does not hold a policy.
    """
    require(Path(workdir), SEARCHED_POLICY)
    with named("the policy"):
        return BitwidthPolicy.load(Path(workdir) / SEARCHED_POLICY)


def read_macs(workdir: str | Path) -> dict[str, float]:
    """Reads the multiply-adds of each layer, including those computed in float.

    Args:
        workdir: the folder of the run.

    Returns:
        layer name -> MACs.

    Raises:
        ReportError: `cost.json` is missing or has the wrong form.
    """
    data = _read_object(Path(workdir), COST)
    with named(COST):
        return {**_macs(data, "layers"), **_macs(data, "float_layers")}


def read_float_layers(workdir: str | Path) -> dict[str, float]:
    """Reads the multiply-adds of layers computed in float; see `read_macs`."""
    data = _read_object(Path(workdir), COST)
    with named(COST):
        return _macs(data, "float_layers")


def _macs(data: Mapping, key: str) -> dict[str, float]:
    # Files of versions that did not count float layers lack the key.
    layers = take(data, key) if key == "layers" else data.get(key, [])
    check_kind(key, layers, list)
    return dict(_layer_macs(f"{key}[{i}]", layer) for i, layer in enumerate(layers))


def _layer_macs(place: str, layer: Any) -> tuple[str, float]:
    check_kind(place, layer, Mapping)
    check_text(f"{place}.name", take(layer, "name"))
    check_number(f"{place}.macs", take(layer, "macs"), 0)
    return layer["name"], layer["macs"]


def read_importances(workdir: str | Path) -> dict[str, LayerImportances]:
    """Reads the branch probabilities of each layer at the end of a search.

    Args:
        workdir: the folder of the run.

    Returns:
        layer name -> its branch probabilities.

    Raises:
        ReportError: `search/importances.json` is missing or has the wrong form.
    """
    name = f"search/{IMPORTANCES}"
    data = _read_object(Path(workdir), name)
    with named(name):
        layers = take(data, "layers")
        check_kind("layers", layers, Mapping)
        if not layers:
            raise ReportError(f"layers must not be empty. Received: {{}}. {REMEDY}")
        return {name: _layer_importances(name, entry) for name, entry in layers.items()}


def _layer_importances(name: str, entry: Any) -> LayerImportances:
    check_kind(f"layers.{name}", entry, Mapping)
    keys = LayerImportances.__dataclass_fields__
    with named(f"layers.{name}"):
        for key in keys:
            check_kind(key, take(entry, key), list)
        return LayerImportances(**{key: tuple(entry[key]) for key in keys})


def _read_object(workdir: Path, name: str) -> Mapping[str, Any]:
    return _parse(name, _read_text(workdir, name))


def require(workdir: Path, name: str) -> None:
    """Raises ReportError unless a file is in the workdir of a run."""
    try:
        found = (workdir / name).is_file()
    except OSError:  # for example a name that is too long
        found = False
    if not found:
        raise ReportError(
            f"{name} must be in the workdir of the run. "
            f"Received: no file {workdir / name!s:.500}. {REMEDY}"
        )


def _read_text(workdir: Path, name: str) -> str:
    require(workdir, name)
    with named(name):
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
