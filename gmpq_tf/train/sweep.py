"""Searches and fine-tunes at every point of a grid, and draws accuracy against cost.

The specification is a JSON file:

  {"search":   {"epochs": 4, "dataset": "cifar10"},       flags of every search
   "finetune": {"epochs": 10, "dataset": "cifar10"},      flags of every fine-tuning
   "evaluate": {"dataset": "cifar10", "split": "test"},   flags of every evaluation
   "grid":     {"search.bit_ops_budget": [0.01, 0.02],    every combination is a point;
                "search.eta": [0, 100],                   a flag without a stage is
                "seed": [0, 1, 2]}}                       one of both trainings

or, instead of the grid, "points": a list of such choices. "search.strategy" names a
strategy, whose flags a point may have; with "finetune.model" policies are deployed on
another network, whose layers have the same names, and possibly on other images.

Each point is an ordinary workdir in <workdir>/points, so that all commands work on it.
Several machines can share the work through a common folder: each takes points that no
other is working on (or, with --shard=INDEX/COUNT, its own share). An interrupted sweep
resumes when it is started again. The results, <workdir>/sweep.csv and
accuracy_bops.png, contain the finished points; detectors have their mean average
precision instead of an accuracy (map_07_bops.png), and numbers their loss. With
--runner=ray the points are tasks of a Ray cluster.

If a grid is too coarse, give "ranges" instead, from which Optuna draws the points:

  "ranges": {"search.zeta": {"low": 0.1, "high": 10, "log": true},
             "search.budget": {"low": 20, "high": 60, "unit": "kB"}}

--trials is the number of points, --objective the figures on held-out images that are
optimized; best.json has the best points.

  python -m train.sweep --spec=sweep.json --model=model.keras --workdir=runs/sweep
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gmpq_tf.files import write_json
from gmpq_tf.models import load_model
from gmpq_tf.report.schema import METRICS
from gmpq_tf.run.app import run_main
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.flags import from_flags
from gmpq_tf.run.records import fingerprint, read_json
from gmpq_tf.run.run_config import EventsConfig, WorkdirConfig
from gmpq_tf.train.sweep_config import RECORD, SweepConfig
from gmpq_tf.train.sweep_events import write_hparams
from gmpq_tf.train.sweep_points import commands_of
from gmpq_tf.train.sweep_ranges import EXAMPLE, read_ranges
from gmpq_tf.train.sweep_results import write_results
from gmpq_tf.train.sweep_runners import announced, started
from gmpq_tf.train.sweep_spec import (
    Flags,
    Point,
    deployed_models,
    figure_of_point,
    read_points,
    read_spec,
)
from gmpq_tf.train.sweep_study import Study
from gmpq_tf.train.sweep_trials import BEST, TRIALS, Trials


def sweep(config: SweepConfig, run: WorkdirConfig) -> Path:
    """Runs every point of the share that is neither finished nor in work elsewhere.

    Args:
        config: specification, share and runner.
        run: workdir and how the command runs.

    Returns:
        The path of sweep.csv.

    Raises:
        ValueError: the specification or the model cannot be used, or points failed.
    """
    # Paths must be absolute: tasks of Ray run in other folders.
    workdir = Path(run.workdir).resolve()
    model, spec = Path(str(config.model)).resolve(), Path(str(config.spec))
    load_model(model)  # refuses a bad file before anything runs
    common = {key: getattr(run, key) for key in ("threads", "progress", "overwrite")}
    flags = {"model": model}, common
    work = run_grid if config.trials is None else run_trials
    points, errors = work(config, spec, workdir, flags)
    path = write_results(workdir, list(points))
    if isinstance(run, EventsConfig) and run.tensorboard:
        print(f"TensorBoard: {write_hparams(workdir, points)}")
    if errors:
        raise StageError(
            f"Every point must run to its end. Received: {len(errors)} that failed, "
            f"the first with:\n{errors[0]}\nThe same command tries them again."
        )
    return path


def run_grid(
    config: SweepConfig, spec: Path, workdir: Path, flags: tuple[Flags, Flags]
) -> tuple[Mapping[str, Point], list[str]]:
    """Runs the share of the points of a grid or a list.

    Args:
        config: the share and the runner.
        spec: the specification.
        workdir: folder of the sweep.
        flags: flags of every training, and flags of every stage.

    Returns:
        All points, by name, and the messages of those that failed.
    """
    points = read_points(spec)
    load_deployed(points)
    forget(workdir, flags[1])
    check_same_sweep(workdir, points, flags[0]["model"])
    index, count = config.share()
    folders = [workdir / "points" / name for name in list(points)[index::count]]
    work = [(f, commands_of(f, points[f.name], *flags)) for f in folders]
    with started(config.runner, config.runner_options(workdir)) as (runner, pool):
        outcomes = list(pool.map(lambda item: announced(runner, *item), work))
    failed = [outcome.message for outcome in outcomes if outcome.state == "failed"]
    return points, failed


def run_trials(
    config: SweepConfig, spec: Path, workdir: Path, flags: tuple[Flags, Flags]
) -> tuple[Mapping[str, Point], list[str]]:
    """Draws points from ranges and runs them; arguments and result as `run_grid`.

    Raises:
        StageError: the specification has no ranges.
    """
    assert config.trials is not None
    if "ranges" not in read_spec(spec):
        raise StageError(
            "Trials are drawn from ranges. "
            f"Received: trials={config.trials} with {spec}, which has none. Give it "
            f"such as 'ranges': {EXAMPLE}, or leave --trials out."
        )
    ranges = read_ranges(spec)
    load_deployed({"each": ranges.first()})
    check_objective(config.objective, ranges.first())
    forget(workdir, flags[1])
    check_same_record(
        workdir,
        {
            **ranges.content,
            "sampler": config.sampler,
            "seed": config.seed,
            "objective": config.objective,
            "model": fingerprint(flags[0]["model"]),
        },
    )
    study = Study(ranges.ranges, config.objective, config.sampler, config.seed)
    trials = Trials(workdir, ranges, study, config.objective, *flags)
    with started(config.runner, config.runner_options(workdir)) as (runner, pool):
        points = trials.run(config.trials, runner, pool)
    print(f"Best: {workdir / BEST}")
    return points, trials.errors


def check_objective(objective: Sequence[str], point: Point) -> None:
    """Refuses a figure that trials would not have when they are finished.

    Args:
        objective: names of the figures that are optimized.
        point: flags of a trial, whose data say its figure.

    Raises:
        StageError: it is the figure of another task.
    """
    own = figure_of_point(point)
    others = [name for name in objective if name in METRICS and name != own]
    if own is not None and others:
        raise StageError(
            f"Trials of this data have the figure {own}. "
            f"Received: objective={','.join(objective)}. Give --objective={own}, with "
            "bit_ops and weight_bytes where they count too."
        )


def load_deployed(points: Mapping[str, Point]) -> None:
    """Refuses a bad file among the models that policies are deployed on."""
    for deployed in deployed_models(points):
        load_model(deployed)


def forget(workdir: Path, common: Flags) -> None:
    """Deletes the record of an earlier sweep if the folder is to be overwritten."""
    if common["overwrite"]:
        (workdir / RECORD).unlink(missing_ok=True)
        (workdir / TRIALS).unlink(missing_ok=True)


def check_same_sweep(workdir: Path, points: Mapping[str, Point], model: Path) -> None:
    """Records the points of a sweep; refuses a folder with the record of another.

    Args:
        workdir: folder of the sweep.
        points: from `read_points`.
        model: the float model.

    Raises:
        StageError: the folder holds another sweep.
    """
    check_same_record(workdir, {"points": points, "model": fingerprint(model)})


def check_same_record(workdir: Path, now: Mapping[str, Any]) -> None:
    """Writes the record of a sweep; refuses a folder with a different record.

    Args:
        workdir: folder of the sweep.
        now: the record: plain JSON values.

    Raises:
        StageError: the folder holds another sweep.
    """
    path = workdir / RECORD
    plain, before = json.loads(json.dumps(now)), read_json(path)
    if before and before != plain:
        keys = {**before, **plain}
        other = ", ".join(k for k in keys if before.get(k) != plain.get(k))
        raise StageError(
            "A sweep must be continued with the points and the model it was started "
            f"with. Received others than {path} says: {other}. Use another --workdir."
        )
    if not before:
        write_json(path, plain)


def main(argv: list[str]) -> None:
    """Runs the command with the flags already parsed.

    Args:
        argv: not used.
    """
    path = sweep(from_flags(SweepConfig), from_flags(EventsConfig))
    print(f"Points: {path}")


def run() -> None:
    """Parses the flags and runs the command; entry point of `gmpq-sweep`."""
    run_main(main, __doc__, SweepConfig, EventsConfig)


if __name__ == "__main__":
    run()
