"""Searches and fine-tunes at every point of a grid, and draws accuracy against BOPs.

The specification is a JSON file:

  {"search":   {"epochs": 4, "dataset": "cifar10"},       flags of every search
   "finetune": {"epochs": 10, "dataset": "cifar10"},      flags of every fine-tuning
   "evaluate": {"dataset": "cifar10", "split": "test"},   flags of every evaluation
   "grid":     {"search.bit_ops_budget": [0.01, 0.02],    every combination is a point;
                "search.eta": [0, 100],                   a flag without a stage is
                "seed": [0, 1, 2]}}                       one of both trainings

or, instead of the grid, "points": a list of such choices. "search.strategy" names a
strategy, whose flags a point may have; with "finetune.model" policies are deployed on
another network, whose layers have the same names, and maybe on other images.

Each point is an ordinary workdir in <workdir>/points, so that all commands work on it.
Several machines share the
work through a common folder alone: each takes the points that no other is working on
(or, with --shard=INDEX/COUNT, its own share), and what was interrupted goes on. Ends in
<workdir>/sweep.csv and accuracy_bops.png, made of the points that are finished.

  python -m train.sweep --spec=sweep.json --model=model.keras --workdir=runs/sweep
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gmpq_tf.files import write_json
from gmpq_tf.models import load_model
from gmpq_tf.run.app import run_main
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.flags import from_flags
from gmpq_tf.run.records import fingerprint, read_json
from gmpq_tf.run.run_config import WorkdirConfig
from gmpq_tf.train.sweep_points import Children, run_point
from gmpq_tf.train.sweep_results import write_results
from gmpq_tf.train.sweep_spec import Point, deployed_models, read_points

RECORD = "sweep.json"


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
    for deployed in deployed_models(points):
        load_model(deployed)
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
