"""Searches and fine-tunes at every point of a grid, and draws accuracy against BOPs.

The specification is a JSON file:

  {"search":   {"epochs": 4, "dataset": "cifar10"},       flags of every search
   "finetune": {"epochs": 10, "dataset": "cifar10"},      flags of every fine-tuning
   "evaluate": {"dataset": "cifar10", "split": "test"},   flags of every evaluation
   "grid":     {"search.bit_ops_budget": [0.01, 0.02],    every combination is a point;
                "search.eta": [0, 100],                   a flag without a stage is
                "seed": [0, 1, 2]}}                       one of both trainings

or, instead of the grid, "points": a list of such choices. Each point is an ordinary
workdir in <workdir>/points, so that all commands work on it. Several machines share the
work through a common folder alone: each takes the points that no other is working on
(or, with --shard=INDEX/COUNT, its own share), and what was interrupted goes on. Ends in
<workdir>/sweep.csv and accuracy_bops.png, made of the points that are finished.

  python -m train.sweep --spec=sweep.json --model=model.keras --workdir=runs/sweep
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import itertools
import json
import math
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gmpq_tf.data import DataConfig
from gmpq_tf.files import parse_json, read_text, write_atomic, write_json
from gmpq_tf.models import load_model
from gmpq_tf.report.plots import plot_front, png_bytes
from gmpq_tf.report.read import ResultRow
from gmpq_tf.run.app import run_main
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.flags import field_types, from_flags, word_for_none
from gmpq_tf.run.records import fingerprint, read_json
from gmpq_tf.run.run_config import RunConfig, WorkdirConfig
from gmpq_tf.run.stage import Stage
from gmpq_tf.run.workdir import LOCKED
from gmpq_tf.spelling import suggest
from gmpq_tf.train.evaluate import EvaluateConfig
from gmpq_tf.train.finetune import FinetuneConfig
from gmpq_tf.train.search import SearchConfig

TRAININGS = ("search", "finetune")
STAGES = {
    "search": (SearchConfig, DataConfig, RunConfig),
    "finetune": (FinetuneConfig, DataConfig, RunConfig),
    "evaluate": (EvaluateConfig, DataConfig, WorkdirConfig),
}
# What the sweep decides itself.
TAKEN = frozenset(["workdir", "overwrite", "model", "policy", "name", "names"])
RECORD = "sweep.json"
MOST_POINTS = 10_000
COLUMNS = ("point", "accuracy", "bit_ops", "weight_bytes", "images", "split")
Flags = dict[str, Any]
Point = dict[str, Flags]  # stage -> its flags


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """What is swept, and how much of it here.

    Args:
        spec: JSON file of the grid; see above.
        model: Float model, a .keras or .h5 file.
        jobs: Points worked on at a time on this machine.
        shard: INDEX/COUNT: only every COUNT-th point, from INDEX (0 to COUNT - 1).

    Raises:
        ValueError: a value is missing or out of range.
    """

    spec: str | None = None
    model: str | None = None
    jobs: int = 1
    shard: str = "0/1"

    def __post_init__(self) -> None:
        if not self.spec or not self.model:
            raise ValueError(
                "A sweep needs a specification and a float model. "
                f"Received: spec={self.spec!r}, model={self.model!r}. "
                "Give --spec=FILE.json and --model=FILE.keras."
            )
        if self.jobs < 1:
            raise ValueError(f"jobs must be 1 or more. Received: jobs={self.jobs}.")
        self.share()

    def share(self) -> tuple[int, int]:
        """Index and count of the shard."""
        match = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        index, count = map(int, match.groups()) if match else (0, 0)
        if index >= count:
            raise ValueError(
                "shard must be INDEX/COUNT with INDEX below COUNT. "
                f"Received: shard={self.shard!r}. Use such as 0/4."
            )
        return index, count


def sweep(config: SweepConfig, run: WorkdirConfig) -> Path:
    """Runs every point of the share that is neither finished nor worked on elsewhere.

    Args:
        config: what.
        run: where.

    Returns:
        The path of sweep.csv.

    Raises:
        ValueError: the specification or the model cannot be used, or points failed.
    """
    workdir, model = Path(run.workdir), Path(str(config.model)).resolve()
    load_model(model)  # refuses a bad file before anything runs
    points = read_points(Path(str(config.spec)))
    if run.overwrite:
        (workdir / RECORD).unlink(missing_ok=True)
    check_same_sweep(workdir, points, model)
    common = {key: getattr(run, key) for key in ("threads", "progress", "overwrite")}
    index, count = config.share()
    chosen = list(points.items())[index::count]
    children = Children()

    def work(item: tuple[str, Point]) -> str | None:
        folder = workdir / "points" / item[0]
        return run_point(folder, item[1], {"model": model}, common, children)

    with ThreadPoolExecutor(config.jobs) as pool:
        try:
            errors = [error for error in pool.map(work, chosen) if error]
        except KeyboardInterrupt:
            children.stop()
            raise  # after they have ended: the pool waits for them
    path = write_results(workdir, list(points))
    if errors:
        raise StageError(
            f"Every point must run to its end. Received: {len(errors)} that failed, "
            f"the first with:\n{errors[0]}\nThe same command tries them again."
        )
    return path


def read_points(spec: Path) -> dict[str, Point]:
    """Reads a specification.

    Args:
        spec: the JSON file.

    Returns:
        Name of each point -> its flags, by stage.

    Raises:
        StageError: the file is no specification, or a flag is unknown.
    """
    content = _read_spec(spec)
    common = {stage: _checked(content.get(stage, {}), stage) for stage in STAGES}
    if ("grid" in content) == ("points" in content):
        raise StageError(
            "A specification must have either a grid or points. "
            f"Received: {spec} with {', '.join(content) or 'nothing'}."
        )
    choices = _listed(content) if "points" in content else _combinations(content)
    width = len(str(len(choices) - 1))
    points = {}
    for number, choice in enumerate(choices):
        point = {stage: dict(flags) for stage, flags in common.items()}
        for key, value in _checked_values("a point", choice).items():
            for stage, flag in _stages_of(key):
                point[stage][flag] = value
        _check_decides(point)
        points[f"{number:0{width}}_{_label(choice)}"] = point
    return points


def _check_decides(point: Point) -> None:
    """Refuses points that would be finished without an accuracy to draw."""
    if point["evaluate"].get("output_kind") == "numbers":
        raise StageError(
            "A sweep draws accuracies, which numbers do not have. "
            "Received: evaluate.output_kind=numbers. Leave it out."
        )


def _read_spec(spec: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(spec))
    except (OSError, ValueError) as error:
        raise StageError(
            f"A specification must be a JSON file. Received: {spec}: {error}. "
            "See --help for one."
        ) from error
    keys = [*STAGES, "grid", "points"]
    if not isinstance(content, dict) or any(key not in keys for key in content):
        named = content if isinstance(content, dict) else ("no object",)
        unknown = next(key for key in named if key not in keys)[:80]
        raise StageError(
            f"A specification must have the keys {', '.join(keys)} only. "
            f"Received: {unknown!r} in {spec}. {suggest(unknown, keys)}"
        )
    return content


def _listed(content: Flags) -> list[Flags]:
    points = content["points"]
    if not isinstance(points, list) or not points:
        raise StageError(
            "Points must be a list of objects, each from flags to values. "
            f"Received: points={points!r:.80}. Write [{{'search.eta': 100}}]."
        )
    _check_count(len(points))
    return points


def _combinations(content: Flags) -> list[Flags]:
    grid = content["grid"]
    valid = isinstance(grid, dict) and grid
    if not valid or not all(isinstance(v, list) and v for v in grid.values()):
        raise StageError(
            "A grid must map each flag to a list of values. "
            f"Received: grid={grid!r:.80}. Write {{'search.eta': [0, 100]}}."
        )
    _check_count(math.prod(len(values) for values in grid.values()))
    values = itertools.product(*grid.values())
    return [dict(zip(grid, chosen, strict=True)) for chosen in values]


def _check_count(count: int) -> None:
    if count > MOST_POINTS:
        raise StageError(
            f"A sweep must have at most {MOST_POINTS} points. Received: {count}. "
            "Give fewer values, or several specifications."
        )


def _stages_of(key: str) -> list[tuple[str, str]]:
    """(stage, flag) pairs that a key such as `search.eta` or `seed` stands for."""
    stage, _, flag = key.rpartition(".")
    stages = [stage] if stage else [s for s in TRAININGS if flag in flag_names(s)]
    for name in stages or TRAININGS:
        _checked({flag: None}, name)
    return [(name, flag) for name in stages]


def _checked(flags: Any, stage: str) -> Flags:
    """Flags of a stage, each of which it must know."""
    known = flag_names(stage) if stage in STAGES else []
    for flag in _checked_values(stage, flags):
        if flag not in known:
            raise StageError(
                "A flag must be one of the stage's that the sweep leaves open. "
                f"Received: {f'{stage}.{flag}':.80}. "
                f"{suggest(flag[:80], known or STAGES)}"
            )
    return dict(flags)


def _checked_values(name: str, flags: Any) -> Flags:
    """Flags whose values are what a command line can give."""
    valid = isinstance(flags, dict)
    if not valid or not all(map(_is_value, flags.values())):
        raise StageError(
            "Flags must be an object from names to texts, numbers, true, false, null "
            f"or lists of them. Received: {name} with {flags!r:.80}. "
            "Write such as {'search.eta': 100}."
        )
    return flags


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_value(item) and not isinstance(item, list) for item in value)
    text = "" if value is None else value  # no process can be given a NUL
    return isinstance(text, int | float) or (isinstance(text, str) and "\0" not in text)


@functools.cache
def flag_names(stage: str) -> list[str]:
    """Names of the flags of a stage that a specification may give."""
    return sorted({name for cls in STAGES[stage] for name in field_types(cls)} - TAKEN)


@functools.cache
def _words_for_none() -> dict[str, str]:
    """Flag -> the text that gives it no value."""
    classes = {cls for stage in STAGES.values() for cls in stage}
    types = {name: hint for cls in classes for name, hint in field_types(cls).items()}
    return {name: word_for_none(hint) or "none" for name, hint in types.items()}


def _label(choice: Flags) -> str:
    """Part of a folder name that says what was chosen."""
    pairs = [f"{key.rpartition('.')[2]}={_text(key, v)}" for key, v in choice.items()]
    # ASCII, because a file name may have 255 bytes, however few letters they are.
    return re.sub(r"[^\w.=,+-]+", "-", "_".join(pairs), flags=re.ASCII)[:100]


def _text(key: str, value: Any) -> str:
    """A value as a command line gives it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    flag = key.rpartition(".")[2]
    return _words_for_none().get(flag, "none") if value is None else str(value)


def check_same_sweep(workdir: Path, points: Mapping[str, Point], model: Path) -> None:
    """Records what is swept, or refuses a folder of another sweep.

    Args:
        workdir: folder of the sweep.
        points: from `read_points`.
        model: the float model.

    Raises:
        StageError: the folder holds another sweep.
    """
    path = workdir / RECORD
    now = {"points": points, "model": fingerprint(model)}
    before = read_json(path)
    if before and before != json.loads(json.dumps(now)):
        raise StageError(
            "A sweep must be continued with the points and the model it was started "
            f"with. Received others than {path} says. Use another --workdir."
        )
    if not before:
        write_json(path, now)


class Children:
    """The processes that run the stages; a stop reaches all that there are."""

    def __init__(self) -> None:
        self.stopped = False
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()

    def run(self, command: list[str]) -> subprocess.CompletedProcess | None:
        """Runs a command to its end.

        Args:
            command: the program and its arguments.

        Returns:
            What it wrote and its exit code; None once the children are stopped.
        """
        with self._lock:
            if self.stopped:
                return None
            process = subprocess.Popen(  # noqa: S603  our own, its flags checked
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            self._running.add(process)
        output = process.communicate()
        with self._lock:
            self._running.remove(process)
        return subprocess.CompletedProcess(command, process.returncode, *output)

    def stop(self) -> None:
        """Asks every process to stop, and starts no more."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                process.terminate()


def run_point(
    folder: Path, point: Point, training: Flags, common: Flags, children: Children
) -> str | None:
    """Runs the stages of one point, each in a process of its own.

    Args:
        folder: workdir of the point.
        point: its flags.
        training: flags of every training.
        common: flags of every stage.
        children: runs the processes.

    Returns:
        None, or what the stage that failed said; a point that another process is
        working on, or whose processes were stopped, is no failure.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        given = training if stage in TRAININGS else {"names": "finetune"}
        flags = common | given | {"workdir": folder} | point[stage]
        command = [f"--{flag}={_text(flag, value)}" for flag, value in flags.items()]
        done = _run_stage(stage, command, folder / f"{stage}.log", children)
        if done is None or children.stopped:
            return None
        if LOCKED in done.stderr:
            print(f"{folder.name}: another process is working on it", flush=True)
            return None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["(no message)"]
            errors = [line for line in lines if line.startswith("Error")] or lines[-1:]
            return f"{folder.name}, {stage}: {errors[-1]}"
    print(f"{folder.name}: finished", flush=True)
    return None


def _run_stage(stage: str, flags: list[str], log: Path, children: Children) -> Any:
    module = f"{__package__}.{stage}"
    done = children.run([sys.executable, "-m", module, *flags])
    if done is not None:
        write_atomic(log, done.stdout + done.stderr)
    return done


def write_results(workdir: Path, names: list[str]) -> Path:
    """Writes sweep.csv and accuracy_bops.png of the points that are finished.

    Args:
        workdir: folder of the sweep.
        names: the points, in order.

    Returns:
        The path of sweep.csv.
    """
    folders = [workdir / "points" / name for name in names]
    rows = [row for folder in folders if (row := point_row(folder))]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = write_atomic(workdir / "sweep.csv", text.getvalue())
    if rows:
        drawn = [[_result_row(row) for row in some] for some in (rows, front(rows))]
        write_atomic(workdir / "accuracy_bops.png", png_bytes(plot_front(*drawn)))
    return path


def point_row(folder: Path) -> Flags | None:
    """Row of a point in sweep.csv, None where it is not finished."""
    evaluation = read_json(folder / "finetune" / "evaluation.json")
    if not {"accuracy", "images", "split"} <= evaluation.keys():
        return None
    # Counted on the float model: the student has quantizers' variables beside weights.
    cost = Stage(folder, "finetune").results()
    return {
        "point": folder.name,
        "accuracy": evaluation["accuracy"],
        "bit_ops": cost["bit_ops"],
        "weight_bytes": cost["weight_bytes"],
        "images": evaluation["images"],
        "split": evaluation["split"],
    }


def front(rows: list[Flags]) -> list[Flags]:
    """The points that no other beats: more accurate, or cheaper (Pareto front).

    Args:
        rows: with `accuracy` and `bit_ops`.

    Returns:
        Those rows, cheapest first.
    """
    best: list[Flags] = []
    for row in sorted(rows, key=lambda row: (row["bit_ops"], -row["accuracy"])):
        if not best or row["accuracy"] > best[-1]["accuracy"]:
            best.append(row)
    return best


def _result_row(row: Flags) -> ResultRow:
    values = [row[key] for key in ("accuracy", "bit_ops", "weight_bytes")]
    return ResultRow(row["point"], *values)


def main(argv: list[str]) -> None:
    """Runs the command; flags must have been parsed.

    Args:
        argv: not used.
    """
    path = sweep(from_flags(SweepConfig), from_flags(WorkdirConfig))
    print(f"Points: {path}")


def run() -> None:
    """Entry point of `gmpq-sweep`."""
    run_main(main, __doc__, SweepConfig, WorkdirConfig)


if __name__ == "__main__":
    run()
