"""The options of a sweep: specification, share, sampler, runner."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

from gmpq_tf.spelling import lookup
from gmpq_tf.train.sweep_children import RunnerOptions
from gmpq_tf.train.sweep_runners import RUNNERS, require_package
from gmpq_tf.train.sweep_spec import check_count
from gmpq_tf.train.sweep_study import OBJECTIVES, SAMPLERS

RECORD = "sweep.json"  # what is swept, in the workdir


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Which points are run, and where.

    Args:
        spec: JSON file of the grid; see above.
        model: Float model, a .keras or .h5 file.
        jobs: Number of points run at a time; none: one on this machine, and as many as
            fit in a Ray cluster.
        shard: INDEX/COUNT: only every COUNT-th point, from INDEX (0 to COUNT - 1).
        trials: Number of points drawn from the ranges of the specification; none: the
            specification has a grid or points.
        sampler: How Optuna draws them: tpe (guided by earlier results) or random.
        objective: What is optimized, on held-out images: accuracy (of detectors map_07,
            of numbers loss), bit_ops or weight_bytes, or several with commas between
            them.
        seed: Seed of the sampler.
        runner: Where points run: local (processes of this machine) or ray (a Ray
            cluster whose machines see the workdir at the same path). Both keep their
            state in the workdir, so that either can resume the other's sweep.
        ray_address: Address of the Ray cluster, such as host:6379 or auto; none: one is
            started on this machine for the time of the sweep.
        ray_cpus: CPUs of the cluster that each point takes.
        ray_gpus: GPUs of the cluster that each point takes (it sees no others); may be
            a fraction.

    Raises:
        ValueError: a value is missing or out of range.
    """

    spec: str | None = None
    model: str | None = None
    jobs: int | None = None
    shard: str = "0/1"
    trials: int | None = None
    sampler: str = "tpe"
    objective: tuple[str, ...] = ("accuracy",)
    seed: int = 0
    runner: str = "local"
    ray_address: str | None = None
    ray_cpus: float = 1.0
    ray_gpus: float = 0.0

    def __post_init__(self) -> None:
        if not self.spec or not self.model:
            raise ValueError(
                "A sweep needs a specification and a float model. "
                f"Received: spec={self.spec!r}, model={self.model!r}. "
                "Give --spec=FILE.json and --model=FILE.keras."
            )
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"jobs must be 1 or more. Received: jobs={self.jobs}.")
        self.share()
        lookup(RUNNERS, self.runner, "runner")
        self._check_ray()
        self._check_trials()

    def _check_ray(self) -> None:
        if self.runner == "ray":
            require_package("ray", "runner='ray'", "use --runner=local")
        else:
            names = ("ray_address", "ray_cpus", "ray_gpus")
            self._refuse(names, f"runner={self.runner!r}", "--runner=ray")
        for name in ("ray_cpus", "ray_gpus"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be 0 or more. Received: {name}={getattr(self, name)}."
                )
        if not self.ray_cpus and not self.ray_gpus:
            raise ValueError(
                "A point must take something of the Ray cluster. Received: ray_cpus=0, "
                "ray_gpus=0. Give one of them."
            )

    def _check_trials(self) -> None:
        lookup(SAMPLERS, self.sampler, "sampler")
        for name in self.objective:
            lookup(OBJECTIVES, name, "objective")
        if not self.objective or len(set(self.objective)) < len(self.objective):
            raise ValueError(
                "objective must name each figure once. "
                f"Received: objective={self.objective!r}. Use such as accuracy,bit_ops."
            )
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more. Received: seed={self.seed}.")
        if self.trials is None:
            self._refuse(("sampler", "objective", "seed"), "no trials", "--trials=N")
            return
        if self.trials < 1:
            raise ValueError(
                f"trials must be 1 or more. Received: trials={self.trials}."
            )
        check_count(self.trials)
        self._refuse(("shard",), "trials, which one process draws", "--runner=ray")
        require_package("optuna", f"trials={self.trials}", "give a grid")

    def _refuse(self, names: Sequence[str], where: str, remedy: str) -> None:
        """Refuses options that would have no effect."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in names and value != field.default:
                raise ValueError(
                    f"{field.name} has no meaning here. Received: {field.name}="
                    f"{value!r} with {where}. Leave it out, or use {remedy}."
                )

    def runner_options(self, workdir: Path) -> RunnerOptions:
        """Returns the options of the runner, for a sweep in a folder."""
        ray = self.ray_address, self.ray_cpus, self.ray_gpus
        return RunnerOptions(self.jobs, *ray, workdir / RECORD)

    def share(self) -> tuple[int, int]:
        """Returns index (from 0) and count of the shard.

        Raises:
            ValueError: `shard` is not INDEX/COUNT with INDEX below COUNT.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        index, count = map(int, match.groups()) if match else (0, 0)
        if index >= count:
            raise ValueError(
                "shard must be INDEX/COUNT with INDEX below COUNT. "
                f"Received: shard={self.shard!r}. Use such as 0/4."
            )
        return index, count
