"""Regularized evolution: good policies are changed step by step and measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gmpq_tf.policy.draw import settled_bits
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_whole
from gmpq_tf.search.strategies.random_draws import check_budgeted, draw
from gmpq_tf.search.strategies.trials import Trials, TrialsConfig
from gmpq_tf.search.values import Bits, Valued

MISSES = 50  # children in a row that were all measured before: then the search ends


@dataclass(frozen=True)
class EvolutionConfig(TrialsConfig):
    """Options of `TrialsConfig`, and those of the evolution.

    Args:
        population: Number of policies that may have children; each child replaces the
            oldest.
        tournament: Number of policies drawn from the population, the best of which has
            a child.
    """

    population: int = 24
    tournament: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("population", self.population, 2)
        check_whole("tournament", self.tournament, 1)


def evolution(case: SearchCase, config: EvolutionConfig) -> Valued:
    """Changes one tensor's bits of a good policy, moves it to the budget, measures it.

    The first policies are the uniform one of the budget and random ones. A child is a
    copy of the best of a few policies of the population, in which one tensor gets other
    bits; then further tensors change at random until the budgets are kept and used up.
    The last step is not in the source, where architectures have no budget.

    Args:
        case: the float model, its choices, budgets and images.
        config: number of trials, population, and what is measured.

    Returns:
        Values by which the best measured policy is chosen, and the ranking.

    Source: Real et al., "Regularized Evolution for Image Classifier Architecture
    Search", AAAI 2019.
    """
    trials = Trials(case, config)
    random = np.random.default_rng(case.seed)
    first = [trials.start]
    first += [own for own in draw(case, config.population - 1) if own not in first]
    population = [(own, _mean(trials, own)) for own in first[: config.trials]]
    misses = 0
    while trials.left > 0 and misses < MISSES:
        size = min(config.tournament, len(population))
        drawn = random.choice(len(population), size, replace=False)
        parent, _ = min((population[i] for i in drawn), key=lambda own: own[1])
        child = _child(case, parent, random)
        if child is None or trials.knows(child):
            misses += 1
            continue
        misses = 0
        population.append((child, _mean(trials, child)))
        if len(population) > config.population:
            population.pop(0)
    return trials.best()


def _mean(trials: Trials, bits: Bits) -> float:
    return float(trials.risk(bits).mean())


def _child(case: SearchCase, parent: Bits, random: np.random.Generator) -> Bits | None:
    """Returns a copy with other bits of one tensor, moved to the budgets, or None."""
    candidates = case.problem.candidates
    tensors = [
        (name, side)
        for name, pair in candidates.items()
        for side in (0, 1)
        if len(pair[side]) > 1
    ]
    name, side = tensors[int(random.integers(len(tensors)))]
    pair = list(parent[name])
    others = [bits for bits in candidates[name][side] if bits != pair[side]]
    pair[side] = int(random.choice(others))
    bits = {**parent, name: (pair[0], pair[1])}
    seed = int(random.integers(2**31))
    return settled_bits(bits, candidates, check_budgeted(case), seed)
