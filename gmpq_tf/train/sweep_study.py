"""Draws the flags of a sweep by a sampler of Optuna, reproducibly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmpq_tf.train.sweep_ranges import Range

SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler"}  # their names in Optuna
# Figure of a point -> the direction in which it is optimized.
OBJECTIVES = {
    "accuracy": "maximize",
    "map_07": "maximize",
    "loss": "minimize",
    "bit_ops": "minimize",
    "weight_bytes": "minimize",
}


class Study:
    """A study of Optuna that is kept in memory; its record is in the workdir.

    Trial n is drawn by a new sampler with the seed `trial_seed(seed, n)` from the
    trials that the study knows. So an interrupted sweep draws the same points as one
    without interruption.

    Args:
        ranges: key -> its range.
        objective: names in `OBJECTIVES`; with several the best trials are the Pareto
            front.
        sampler: a name in `SAMPLERS`.
        seed: seed of the sampler.
    """

    def __init__(
        self,
        ranges: Mapping[str, Range],
        objective: Sequence[str],
        sampler: str,
        seed: int,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._seed = optuna, seed
        self._sampler = getattr(optuna.samplers, SAMPLERS[sampler])
        self._distributions = {
            key: _distribution(optuna.distributions, r) for key, r in ranges.items()
        }
        self._study = optuna.create_study(
            directions=[OBJECTIVES[name] for name in objective]
        )

    def draw(self, number: int) -> dict[str, float]:
        """Draws the numbers of the next trial.

        Args:
            number: number of the trial, equal to that of trials drawn or added before.
        """
        self._study.sampler = self._sampler(seed=trial_seed(self._seed, number))
        return dict(self._study.ask(self._distributions).params)

    def add(self, drawn: Mapping[str, float]) -> None:
        """Adds the next trial, which was drawn before an interruption, as running."""
        self._study.add_trial(
            self._optuna.create_trial(
                state=self._optuna.trial.TrialState.RUNNING,
                params=dict(drawn),
                distributions=self._distributions,
            )
        )

    def tell(self, number: int, figures: Sequence[float] | None) -> None:
        """Records the result of a trial.

        Args:
            number: number of the trial.
            figures: one for each objective; None: the trial failed.
        """
        failed = self._optuna.trial.TrialState.FAIL
        state = failed if figures is None else None
        self._study.tell(number, figures, state=state)

    def best(self) -> list[int]:
        """Returns the numbers of the trials that no other beats."""
        return sorted(trial.number for trial in self._study.best_trials)


def trial_seed(seed: int, number: int) -> int:
    """Returns the seed of the sampler that draws one trial.

    Args:
        seed: seed of the sweep, 0 or more.
        number: number of the trial.
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _distribution(kinds: Any, given: Range) -> Any:
    if given.whole:
        low, high, step = int(given.low), int(given.high), int(given.step or 1)
        return kinds.IntDistribution(low, high, log=given.log, step=step)
    return kinds.FloatDistribution(
        float(given.low), float(given.high), log=given.log, step=given.step
    )
