"""The record of a stage, `<workdir>/config/<stage>.json`: configuration, versions."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmpq_tf.files import parse_json, read_text
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.run_config import WorkdirConfig
from gmpq_tf.version import __version__

PACKAGES = ("tensorflow", "keras", "numpy", "tensorflow-datasets", "ai-edge-litert")
LONGEST_NAME = 200  # bytes of a file name may be 255


def describe_run(
    run: WorkdirConfig, name: str, config: Mapping[str, Any], scaling: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the record of a stage, to be written to `<workdir>/config/<stage>.json`.

    Args:
        run: where the command writes and how it runs.
        name: name of the stage.
        config: everything the results depend on: plain JSON values.
        scaling: the input scaling, from `InputScaling.to_config`.

    Returns:
        Plain JSON values: the arguments, the seed, package versions, the command line.
    """
    return {
        "stage": name,
        "config": config,
        "scaling": scaling,
        "run": dataclasses.asdict(run),
        "seed": config.get("data", {}).get("seed"),
        "versions": versions(),
        "command": command(),
    }


def read_record(path: Path) -> dict[str, Any]:
    """Reads `<workdir>/config/<stage>.json`.

    Args:
        path: the file.

    Returns:
        What `describe_run` returned.

    Raises:
        StageError: the file is damaged.
    """
    record = read_json(path)
    if not isinstance(record.get("config"), dict):
        raise _damaged(path)
    return record


def _damaged(path: Path) -> StageError:
    return StageError(
        f"A stage's configuration must be a JSON object. Received: {path}. "
        "Delete the file, or use --overwrite or another --workdir."
    )


def recorded_data(workdir: str | Path, stage: str = "pretrain") -> dict[str, Any]:
    """Returns the data flags that a stage of the workdir was run with.

    Args:
        workdir: folder of the run.
        stage: name of the stage.

    Returns:
        Field name of DataConfig -> value; {} where the stage has no record.

    Raises:
        StageError: the name cannot be a folder's name, or the file is damaged.
    """
    _check_inside(stage)
    path = Path(workdir) / "config" / f"{stage}.json"
    if not path.exists():
        return {}
    data = read_record(path)["config"].get("data", {})
    if not isinstance(data, dict) or not all(map(_is_flag, data, data.values())):
        raise _damaged(path)
    lists = {key: tuple(v) for key, v in data.items() if isinstance(v, list)}
    return data | lists


def _check_inside(name: str) -> None:
    """Refuses a name that leads out of the workdir; spaces and the like may stay."""
    if Path(name).name != name or "\0" in name or len(name) > LONGEST_NAME:
        raise StageError(
            "The name of a stage must be that of a folder in the workdir. "
            f"Received: name={name!r:.80}. Use letters, digits, '_', '-' and '.'."
        )


def _is_flag(name: str, value: Any) -> bool:
    """Whether a value can be a flag's: a text, a number, None or a list of numbers."""
    if isinstance(value, list):
        return all(isinstance(item, int | float) for item in value)
    single = isinstance(value, str | int | float) and name not in ("mean", "std")
    return value is None or single


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object that may be absent or damaged.

    Args:
        path: the file.

    Returns:
        The object; {} where there is none or it is damaged, so that the caller computes
        again what the file would have held.
    """
    try:
        value = parse_json(read_text(path))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def fingerprint(path: str | Path) -> str:
    """Returns the first 16 hex digits of a file's SHA-256."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version(), "gmpq-tf": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """Returns the command line, without the path of the program."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name}" if spec else Path(sys.argv[0]).name
    return shlex.join([*program.split(), *sys.argv[1:]])
