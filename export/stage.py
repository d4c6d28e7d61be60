"""The folder of one stage: its configuration, whether it is finished, its results."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf

from gmpq_tf.files import write_json

PACKAGES = ("tensorflow", "keras", "numpy", "tensorflow-datasets", "ai-edge-litert")
RESERVED_NAMES = ("config", "report")
# They do not change what is computed, so a run may go on with others.
PRACTICAL = frozenset(("data_dir", "cache", "download", "path"))
LOCKED = "Another process is at work"
_ABSENT = "(absent)"
_held: list[Any] = []  # lock files; closing one gives it back


@dataclasses.dataclass(frozen=True)
class WorkdirConfig:
    """Where a command writes and how it runs; none of it changes the results.

    Args:
        workdir: Folder that holds everything of a run. A finished stage in it is
            skipped, an interrupted one resumes.
        overwrite: Delete what the stage left in the workdir and start it again.
        threads: Threads TensorFlow may use; 0 leaves the choice to TensorFlow.
        progress: Progress bars, one line an epoch, or nothing; auto: bars on a
            terminal, lines elsewhere.
    """

    workdir: str = "runs/default"
    overwrite: bool = False
    threads: int = 0
    progress: Literal["auto", "bar", "line", "none"] = "auto"

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(
                f"threads must be 0 or more. Received: threads={self.threads}."
            )

    @property
    def verbose(self) -> int:
        """Keras's number for `progress`."""
        on_terminal = "bar" if sys.stdout.isatty() else "line"
        kind = on_terminal if self.progress == "auto" else self.progress
        return {"none": 0, "bar": 1, "line": 2}[kind]


@dataclasses.dataclass(frozen=True)
class RunConfig(WorkdirConfig):
    """Where a training command writes and how it runs.

    Args:
        steps_per_execution: Training steps in one call of the compiled function.
        jit_compile: Compile the training step with XLA.
    """

    steps_per_execution: int = 1
    jit_compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps_per_execution < 1:
            raise ValueError(
                "steps_per_execution must be 1 or more. "
                f"Received: steps_per_execution={self.steps_per_execution}."
            )


class StageError(ValueError):
    """A stage cannot run in this workdir."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """The folder of one stage of a run.

    Args:
        workdir: folder of the run.
        name: name of the stage; its files lie in `<workdir>/<name>`.
    """

    workdir: Path
    name: str

    @property
    def folder(self) -> Path:
        """Where the stage's files lie."""
        return self.workdir / self.name

    @property
    def record(self) -> Path:
        """File of the resolved configuration."""
        return self.workdir / "config" / f"{self.name}.json"

    @property
    def finished(self) -> bool:
        """Whether the stage has run to its end."""
        return (self.folder / "done.json").exists()

    @property
    def started(self) -> bool:
        """Whether the stage holds work that another configuration would spoil."""
        return self.finished or self.backup.exists()

    @property
    def backup(self) -> Path:
        """File of the state after the last whole epoch."""
        return self.folder / "backup" / "state.npz"

    def finish(self, results: Mapping[str, Any]) -> None:
        """Marks the stage as finished; to be called last."""
        shutil.rmtree(self.backup.parent, ignore_errors=True)
        write_json(self.folder / "done.json", results)

    def results(self) -> dict[str, Any]:
        """What the stage was finished with."""
        return json.loads((self.folder / "done.json").read_text(encoding="utf-8"))


def open_stage(
    run: WorkdirConfig, name: str, config: Mapping[str, Any], scaling: Mapping[str, Any]
) -> Stage:
    """Prepares the folder of a stage and records what it is going to do.

    Args:
        run: where, and whether to start again.
        name: name of the stage.
        config: everything the results depend on: plain JSON values.
        scaling: the input scaling, from `InputScaling.to_config`.

    Returns:
        The stage; look at `finished` before running it.

    Raises:
        StageError: the folder holds a run with another configuration, or another
            process is running this stage in it.
    """
    _check_name(name)
    stage = Stage(Path(run.workdir), name)
    _lock(stage)
    plain = json.loads(json.dumps(config))
    if run.overwrite and stage.record.exists():
        shutil.rmtree(stage.folder, ignore_errors=True)
        stage.record.unlink()
    if stage.record.exists() and stage.started:
        _check_same(stage, read_record(stage.record)["config"], plain)
    else:
        write_json(stage.record, describe_run(run, name, plain, scaling))
    stage.folder.mkdir(parents=True, exist_ok=True)
    return stage


def _lock(stage: Stage) -> None:
    """Claims a stage for this process, until it ends however it ends."""
    path = stage.record.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StageError(
            f"A stage must be run by one process at a time. Received: {stage.folder}. "
            f"{LOCKED} there: let it finish, or use another --workdir or --name."
        ) from error
    _held.append(file)


def describe_run(
    run: WorkdirConfig, name: str, config: Mapping[str, Any], scaling: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what `<workdir>/config/<stage>.json` says."""
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
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record["config"], dict):
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise StageError(
        f"A stage's configuration must be a JSON object. Received: {path}. "
        "Delete the file, or use --overwrite or another --workdir."
    )


def recorded_data(workdir: str | Path, stage: str = "pretrain") -> dict[str, Any]:
    """Returns the data flags a stage of the workdir was run with, or none.

    Args:
        workdir: folder of the run.
        stage: name of the stage.

    Returns:
        Field name of DataConfig -> value.
    """
    path = Path(workdir) / "config" / f"{stage}.json"
    if not path.exists():
        return {}
    data = dict(read_record(path)["config"].get("data", {}))
    lists = {key: tuple(data[key]) for key in ("mean", "std") if data.get(key)}
    return data | lists


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object that may be absent or damaged.

    Args:
        path: the file.

    Returns:
        The object; {} where there is none, so that what it marks is made again.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def fingerprint(path: str | Path) -> str:
    """Returns the first 16 hex digits of a file's SHA-256."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def set_threads(threads: int) -> None:
    """Limits TensorFlow's threads; to be called before TensorFlow computes anything.

    Args:
        threads: at most so many threads; 0 leaves the choice to TensorFlow.
    """
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
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


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name) or name in RESERVED_NAMES:
        raise StageError(
            "The name of a stage must be a plain folder name, not "
            f"{' or '.join(RESERVED_NAMES)}. Received: name={name!r}. "
            "Use letters, digits, '_', '-' and '.'."
        )


def _check_same(stage: Stage, before: Any, now: Any) -> None:
    old, new = _flat(before), _flat(now)
    keys = [k for k in {**old, **new} if old.get(k, _ABSENT) != new.get(k, _ABSENT)]
    keys = [key for key in keys if key.split(".")[-1] not in PRACTICAL]
    if keys:
        lines = [f"  {k}: {old.get(k, _ABSENT)} -> {new.get(k, _ABSENT)}" for k in keys]
        raise StageError(
            f"{stage.folder} must be continued with the configuration it was started "
            "with. Received others:\n" + "\n".join(lines) + "\n"
            "Use another --workdir (or --name), or --overwrite to start again."
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else key)
    return flat
