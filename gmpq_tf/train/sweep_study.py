"""Draws the flags of a sweep by a sampler of Optuna, from results that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmpq_tf.train.sweep_ranges import Range

SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler"}  # their names in Optuna
# Figure of a point -> which way is better.
OBJECTIVES = {"accuracy": "maximize", "bit_ops": "minimize", "weight_bytes": "minimize"}


class Study:
    """A study of Optuna in memory; the workdir is its record.

    Trial n is drawn by a new sampler, seeded by `trial_seed(seed, n)`, from the trials
    that the study knows. So a sweep that was interrupted draws as one that was not.

    Args:
        ranges: key -> its range.
        objective: names in `OBJECTIVES`; several: trials that no other beats.
        sampler: a name in `SAMPLERS`.
        seed: of the sampler.
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
            number: of the trial, which is that of draws and additions before.
        """
        self._study.sampler = self._sampler(seed=trial_seed(self._seed, number))
        return dict(self._study.ask(self._distributions).params)

    def add(self, drawn: Mapping[str, float]) -> None:
        """Adds the next trial, which was drawn before, as one that is running."""
        self._study.add_trial(
            self._optuna.create_trial(
                state=self._optuna.trial.TrialState.RUNNING,
                params=dict(drawn),
                distributions=self._distributions,
            )
        )

    def tell(self, number: int, figures: Sequence[float] | None) -> None:
        """Says what came of a trial.

        Args:
            number: of the trial.
            figures: one for each objective; None: it failed.
        """
        failed = self._optuna.trial.TrialState.FAIL
        state = failed if figures is None else None
        self._study.tell(number, figures, state=state)

    def best(self) -> list[int]:
        """Numbers of the trials that no other beats."""
        return sorted(trial.number for trial in self._study.best_trials)


def trial_seed(seed: int, number: int) -> int:
    """Seed of the sampler that draws one trial.

    Args:
        seed: of the sweep, 0 or more.
        number: of the trial.
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _distribution(kinds: Any, given: Range) -> Any:
    if given.whole:
        low, high, step = int(given.low), int(given.high), int(given.step or 1)
        return kinds.IntDistribution(low, high, log=given.log, step=step)
    return kinds.FloatDistribution(
        float(given.low), float(given.high), log=given.log, step=given.step
    )
