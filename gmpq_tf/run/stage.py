"""The folder of one stage: its configuration, whether it is finished, its results.

How a stage survives interruption: its configuration is recorded before any work; work
is kept as it is done (a backup per epoch, or a line of the journal per measurement);
the marker `done.json` is written last. A stage with a marker is skipped, one without is
resumed from its backup or journal, and either only with the recorded configuration.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmpq_tf.files import DamagedFileError, read_arrays, remove_temporaries, write_json
from gmpq_tf.report.layout import JOURNAL, PRUNED
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.records import describe_run, fingerprint, read_record
from gmpq_tf.run.run_config import WorkdirConfig
from gmpq_tf.run.workdir import check_writable, claim

RESERVED_NAMES = ("config", "report")
# Options that do not change what is computed: a run may be resumed with other values.
MAY_CHANGE_ON_RESUME = frozenset(
    ("data_dir", "cache", "download", "path", "snap_tolerance")
)
# Options used only after the last epoch: an unfinished stage may change them.
LATE = frozenset(("statistics_images",))
_ABSENT = "(absent)"
# Files whose fingerprints the marker of a finished stage records.
RESULT_FILES = (
    "model.keras",
    PRUNED,
    "policy.json",
    "importances.json",
    "values.json",
    "metrics.jsonl",
    "metrics.csv",
)
_opened: list[Stage] = []  # stages opened by this process, latest last


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
        """Folder of the stage's files, `<workdir>/<name>`."""
        return self.workdir / self.name

    @property
    def record(self) -> Path:
        """File of the configuration, with all defaults filled in."""
        return self.workdir / "config" / f"{self.name}.json"

    @property
    def finished(self) -> bool:
        """Whether the stage has run to its end."""
        return self.marker.exists()

    @property
    def marker(self) -> Path:
        """File of the results, whose existence marks the stage as finished."""
        return self.folder / "done.json"

    @property
    def started(self) -> bool:
        """Whether the stage holds work that another configuration would spoil."""
        kept = self.backup, backup_before(self.backup), self.journal
        return self.finished or any(path.exists() for path in kept)

    @property
    def journal(self) -> Path:
        """File with one line per measurement, in stages that measure."""
        return self.folder / JOURNAL

    @property
    def backup(self) -> Path:
        """File of the state after the last whole epoch."""
        return self.folder / "backup" / "state.npz"

    @property
    def epochs(self) -> int:
        """Number of finished epochs in the backup; 0 without a readable backup."""
        for path in (self.backup, backup_before(self.backup)):
            with contextlib.suppress(OSError, DamagedFileError):
                return int(read_arrays(path)["epoch"])
        return 0

    def finish(self, results: Mapping[str, Any]) -> None:
        """Marks the stage as finished; must be called last.

        Args:
            results: plain JSON values.
        """
        paths = [self.folder / name for name in RESULT_FILES]
        files = {path.name: fingerprint(path) for path in paths if path.exists()}
        write_json(self.marker, {**results, "files": files})
        # Only now: were the backup deleted first, a run killed in between would have
        # to train again.
        shutil.rmtree(self.backup.parent, ignore_errors=True)

    def results(self) -> dict[str, Any]:
        """Returns the results that `finish` was called with.

        Raises:
            StageError: the marker is damaged.
        """
        return {k: v for k, v in self._read_marker().items() if k != "files"}

    def check_intact(self) -> None:
        """Refuses a finished stage whose result files were changed since.

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
    """Returns the path of the backup of the epoch before, a spare for the last one."""
    return backup.with_name("before.npz")


def open_stage(
    run: WorkdirConfig, name: str, config: Mapping[str, Any], scaling: Mapping[str, Any]
) -> Stage:
    """Prepares the folder of a stage and records its configuration.

    Args:
        run: the workdir, and whether to delete earlier results and start again.
        name: name of the stage.
        config: everything the results depend on: plain JSON values.
        scaling: the input scaling, from `InputScaling.to_config`.

    Returns:
        The stage; look at `finished` before running it.

    Raises:
        StageError: the folder cannot be written to, holds a run with another
            configuration or damaged results, or is in use by another process.
    """
    _check_name(name)
    stage = Stage(Path(run.workdir), name)
    for folder in (stage.workdir, stage.record.parent, stage.folder):
        check_writable(folder)
    claim(stage.record.with_suffix(".lock"), stage.folder)
    _opened.append(stage)  # so that a signal from here on can name the stage
    plain = json.loads(json.dumps(config))
    if run.overwrite and stage.record.exists():
        _delete(stage)
    before = None
    if stage.record.exists() and stage.started:
        before = read_record(stage.record)["config"]
        _check_same(stage, before, plain)
    if before is None or _late(before) != _late(plain):
        write_json(stage.record, describe_run(run, name, plain, scaling))
    stage.folder.mkdir(parents=True, exist_ok=True)
    _tidy(stage)
    if stage.finished:
        stage.check_intact()
    return stage


def interrupted_at() -> str:
    """Returns the message, for an interrupted command, of where it will resume."""
    stage = _opened[-1] if _opened else None
    if stage is None or stage.finished:
        return "The same command goes on from what is finished."
    if stage.journal.exists():
        return (
            f"{stage.folder} keeps what it has measured: the same command, without "
            "--overwrite, goes on from there."
        )
    return (
        f"{stage.folder} keeps its whole epochs: the same command, without "
        f"--overwrite, goes on with epoch {stage.epochs + 1}."
    )


def _delete(stage: Stage) -> None:
    """Deletes what a stage left; marker first: if killed midway it is unfinished."""
    stage.marker.unlink(missing_ok=True)
    if stage.folder.exists():
        shutil.rmtree(stage.folder)
    stage.record.unlink()


def _tidy(stage: Stage) -> None:
    """Removes temporary files that a killed process left."""
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


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name) or name in RESERVED_NAMES:
        raise StageError(
            "The name of a stage must be a plain folder name, not "
            f"{' or '.join(RESERVED_NAMES)}. Received: name={name!r}. "
            "Use letters, digits, '_', '-' and '.'."
        )


def _check_same(stage: Stage, before: Any, now: Any) -> None:
    old, new = _flat(before), _flat(now)
    # Options added in later versions default to None, so old records without them
    # still compare equal.
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    free = MAY_CHANGE_ON_RESUME if stage.finished else MAY_CHANGE_ON_RESUME | LATE
    keys = [key for key in keys if key.split(".")[-1] not in free]
    if keys:
        lines = [f"  {k}: {old.get(k, _ABSENT)} -> {new.get(k, _ABSENT)}" for k in keys]
        raise StageError(
            f"{stage.folder} must be continued with the configuration it was started "
            "with. Received others:\n" + "\n".join(lines) + "\n"
            "Use another --workdir (or --name), or --overwrite to start again."
        )


def _late(config: Any) -> dict[str, Any]:
    return {k: v for k, v in _flat(config).items() if k.split(".")[-1] in LATE}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else key)
    return flat
