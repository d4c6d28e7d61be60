"""The folder of one stage: its configuration, whether it is finished, its results."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf

from gmpq_tf.files import (
    DamagedFileError,
    parse_json,
    read_arrays,
    read_text,
    remove_temporaries,
    write_json,
)

PACKAGES = ("tensorflow", "keras", "numpy", "tensorflow-datasets", "ai-edge-litert")
RESERVED_NAMES = ("config", "report")
LONGEST_NAME = 200  # bytes of a file name may be 255
# They do not change what is computed, so a run may go on with others.
PRACTICAL = frozenset(("data_dir", "cache", "download", "path"))
LOCKED = "Another process is at work"
_ABSENT = "(absent)"
# Whose content the marker of a finished stage vouches for.
RESULT_FILES = (
    "model.keras",
    "policy.json",
    "importances.json",
    "metrics.jsonl",
    "metrics.csv",
)
_held: list[Any] = []  # lock files; closing one gives it back
_opened: list[Stage] = []  # by this process, the last one last


@dataclasses.dataclass(frozen=True)
class WorkdirConfig:
    """Where a command writes and how it runs; none of it changes the results.

    Args:
        workdir: Folder that holds everything of a run. A finished stage in it is
            skipped, an interrupted one resumes.
        overwrite: Delete what the stage left in the workdir and start it again.
        threads: Threads TensorFlow may use; 0 leaves the choice to TensorFlow.
        progress: A bar that is redrawn, lines (one an epoch, and one a minute within
            it), or nothing; auto: bar on a terminal, lines elsewhere.
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


@dataclasses.dataclass(frozen=True)
class RunConfig(WorkdirConfig):
    """Where a training command writes and how it runs.

    Args:
        steps_per_execution: Training steps in one call of the compiled function.
        jit_compile: Compile the training step with XLA.
        tensorboard: Write the metrics of each epoch as TensorBoard events too, into the
            stage's folder tensorboard.
        distribution: Train on this machine's first device, on several of its GPUs
            (mirrored), or on several machines (multi_worker, which reads TF_CONFIG).
            batch_size is that of all of them together.
        replicas: With mirrored, how many GPUs, or parts of the CPU where there is no
            GPU; 0: all GPUs.
        deterministic: Use deterministic kernels only, which on GPUs are slower.
    """

    steps_per_execution: int = 1
    jit_compile: bool = False
    tensorboard: bool = False
    distribution: Literal["none", "mirrored", "multi_worker"] = "none"
    replicas: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps_per_execution < 1:
            raise ValueError(
                "steps_per_execution must be 1 or more. "
                f"Received: steps_per_execution={self.steps_per_execution}."
            )
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ValueError(
                "TensorBoard events are written with the package tensorboard. "
                "Received: tensorboard=True, without it. `pip install tensorboard`, or "
                "leave --tensorboard out: metrics.jsonl and metrics.csv are written "
                "in any case."
            )
        if self.replicas < 0 or (self.replicas and self.distribution != "mirrored"):
            raise ValueError(
                "replicas must be 0 or more, and is for --distribution=mirrored. "
                f"Received: replicas={self.replicas}, "
                f"distribution={self.distribution!r}."
            )
        if self.jit_compile and self.distribution != "none":
            raise ValueError(
                "XLA compiles the step of one device. Received: jit_compile=True, "
                f"distribution={self.distribution!r}. Leave --jit_compile out: the "
                "quantizers are compiled in any case."
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
        return self.marker.exists()

    @property
    def marker(self) -> Path:
        """File that a finished stage has."""
        return self.folder / "done.json"

    @property
    def started(self) -> bool:
        """Whether the stage holds work that another configuration would spoil."""
        backups = self.backup, backup_before(self.backup)
        return self.finished or any(path.exists() for path in backups)

    @property
    def backup(self) -> Path:
        """File of the state after the last whole epoch."""
        return self.folder / "backup" / "state.npz"

    @property
    def epochs(self) -> int:
        """Whole epochs in the backup; 0 without a readable one."""
        for path in (self.backup, backup_before(self.backup)):
            with contextlib.suppress(OSError, DamagedFileError):
                return int(read_arrays(path)["epoch"])
        return 0

    def finish(self, results: Mapping[str, Any]) -> None:
        """Marks the stage as finished; to be called last.

        Args:
            results: plain JSON values.
        """
        paths = [self.folder / name for name in RESULT_FILES]
        files = {path.name: fingerprint(path) for path in paths if path.exists()}
        write_json(self.marker, {**results, "files": files})
        # Not before: a run killed in between would have to train again.
        shutil.rmtree(self.backup.parent, ignore_errors=True)

    def results(self) -> dict[str, Any]:
        """What the stage was finished with."""
        return {k: v for k, v in self._read_marker().items() if k != "files"}

    def check_intact(self) -> None:
        """Refuses a finished stage whose results are not those it left.

        Raises:
            StageError: a file is missing or has changed.
        """
        for name, before in self._read_marker().get("files", {}).items():
            path = self.folder / name
            if not path.is_file():
                raise StageError(_changed(path, "is missing"))
            if fingerprint(path) != before:
                raise StageError(_changed(path, "is damaged or was changed"))

    def _read_marker(self) -> dict[str, Any]:
        try:
            marker = json.loads(self.marker.read_text(encoding="utf-8"))
        except ValueError:
            marker = None
        if not isinstance(marker, dict):
            raise StageError(_changed(self.marker, "is damaged"))
        return marker


def backup_before(backup: Path) -> Path:
    """Where the backup of the epoch before lies, should the last be damaged."""
    return backup.with_name("before.npz")


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
        StageError: the folder cannot be written to, holds a run with another
            configuration or damaged results, or another process is running this stage
            in it.
    """
    _check_name(name)
    stage = Stage(Path(run.workdir), name)
    for folder in (stage.workdir, stage.record.parent, stage.folder):
        check_writable(folder)
    claim(stage.record.with_suffix(".lock"), stage.folder)
    plain = json.loads(json.dumps(config))
    if run.overwrite and stage.record.exists():
        _delete(stage)
    if stage.record.exists() and stage.started:
        _check_same(stage, read_record(stage.record)["config"], plain)
    else:
        write_json(stage.record, describe_run(run, name, plain, scaling))
    stage.folder.mkdir(parents=True, exist_ok=True)
    _tidy(stage)
    if stage.finished:
        stage.check_intact()
    _opened.append(stage)
    return stage


def check_writable(folder: Path) -> None:
    """Refuses a folder in which nothing could be saved, before anything is computed.

    Args:
        folder: need not be there, but must be possible to make.

    Raises:
        StageError: it is a file, or it or its parent cannot be written to.
    """
    path = next(p for p in (folder, *folder.absolute().parents) if _is_there(p))
    if path.is_dir() and os.access(path, os.W_OK | os.X_OK):
        return
    cause = "cannot be written to" if path.is_dir() else "is a file"
    raise StageError(
        "The workdir must be a folder that can be written to. "
        f"Received: {folder}; {path} {cause}. "
        "Change its permissions, or use another --workdir."
    )


def claim(path: Path, folder: Path) -> None:
    """Claims a folder for this process, until it ends however it ends.

    Args:
        path: the lock file; it stays.
        folder: what is claimed, for the message.

    Raises:
        StageError: another process has claimed it, or the disk cannot lock files.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
        held = _lock(file)
    except OSError as error:
        raise StageError(
            "The workdir must be on a disk that can be written to and can lock files. "
            f"Received: {path} ({error.strerror}). Use another --workdir."
        ) from error
    if not held:
        file.close()
        raise StageError(
            f"A stage must be run by one process at a time. Received: {folder}. "
            f"{LOCKED} there: let it finish, or use another --workdir or --name."
        )
    _held.append(file)


def _lock(file: Any) -> bool:
    """Locks a file, unless another process has."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False
    return True


def interrupted_at() -> str:
    """Says where the same command will go on, for a command that is stopped now."""
    stage = _opened[-1] if _opened else None
    if stage is None or stage.finished:
        return "The same command goes on from what is finished."
    return (
        f"{stage.folder} keeps its whole epochs: the same command, without "
        f"--overwrite, goes on with epoch {stage.epochs + 1}."
    )


def _is_there(path: Path) -> bool:
    # Path.exists raises where a parent may not be looked into.
    return os.access(path, os.F_OK)


def _delete(stage: Stage) -> None:
    """Deletes what a stage left; killed on the way, it is unfinished."""
    stage.marker.unlink(missing_ok=True)
    if stage.folder.exists():
        shutil.rmtree(stage.folder)
    stage.record.unlink()


def _tidy(stage: Stage) -> None:
    """Removes what a killed process left of the files it was writing."""
    results = [stage.folder / name for name in RESULT_FILES]
    following = stage.backup.with_name("next.npz")
    for path in (stage.record, stage.marker, following, *results):
        remove_temporaries(path)
    if stage.finished:
        shutil.rmtree(stage.backup.parent, ignore_errors=True)


def _changed(path: Path, how: str) -> str:
    return (
        f"A finished stage must be as it was left. Received: {path}, which {how}. "
        "Put the file back, or use --overwrite to run the stage again."
    )


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
    """Returns the data flags a stage of the workdir was run with, or none.

    Args:
        workdir: folder of the run.
        stage: name of the stage.

    Returns:
        Field name of DataConfig -> value.

    Raises:
        StageError: the name is none of a folder, or the file is damaged.
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
    """Refuses what leads out of the workdir; spaces and the like are no harm."""
    if Path(name).name != name or "\0" in name or len(name) > LONGEST_NAME:
        raise StageError(
            "The name of a stage must be that of a folder in the workdir. "
            f"Received: name={name!r:.80}. Use letters, digits, '_', '-' and '.'."
        )


def _is_flag(name: str, value: Any) -> bool:
    """Whether a value is what a flag may be: one text or number, or some numbers."""
    if isinstance(value, list):
        return all(isinstance(item, int | float) for item in value)
    single = isinstance(value, str | int | float) and name not in ("mean", "std")
    return value is None or single


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object that may be absent or damaged.

    Args:
        path: the file.

    Returns:
        The object; {} where there is none, so that what it marks is made again.
    """
    try:
        value = parse_json(read_text(path))
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
