"""HAQ: a reinforcement-learning agent proposes policies, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmpq_tf.budget import Candidates
from gmpq_tf.graph import is_searchable, kernel_size, read_graph
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.limits import Limit, exceeded
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_whole
from gmpq_tf.search.choose import choose, spent_on
from gmpq_tf.search.ddpg import Agent, Transition
from gmpq_tf.search.strategies.random_draws import check_budgeted
from gmpq_tf.search.strategies.trials import ACCURACY, Trials, TrialsConfig
from gmpq_tf.search.values import Bits, Valued

REWARD = 10.0  # factor of the accuracy, which is 0 to 1
REMEMBERED = 128  # number of past episodes that the agent is trained on
STATE = 10  # numbers in a state
PREVIOUS, FLAG = 8, 9  # indices in a state: previous action, weights or activations


@dataclass(frozen=True)
class HAQConfig(TrialsConfig):
    """Options of `TrialsConfig`, and how the agent starts.

    Args:
        measure: accuracy (the share of wrong decisions), task (cross-entropy of the
            labels), or divergence (of the outputs from the float model's, without
            labels). It is measured on images that no training step uses.
        warmup: Episodes with random actions before the agent acts.
    """

    measure: str = ACCURACY
    warmup: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("warmup", self.warmup, 1)


def haq(case: SearchCase, config: HAQConfig) -> Valued:
    """Tries the policies of an agent, rewarded by their accuracy (HAQ).

    The agent sees a layer (`layer_states`) and chooses bits of its weights, then of its
    activations, by an action from 0 to 1. If the policy exceeds the budgets, its bits
    are lowered (`walked`). The policy is measured, and each action gets the reward
    `10 (e_uniform - e - kappa (R_G / R_G_uniform - 1))`, where e is the share of wrong
    decisions.

    Unlike in the official code, accuracy is measured on images without training, not as
    the best on training images; budget that is left after lowering is spent, so that
    policies of equal cost are compared; a policy measured before is not measured again
    and does not count as a trial; and layers with fixed bits are not steps of an
    episode.

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: number of trials, and what is measured.

    Returns:
        Values by which the best measured policy is chosen, and the ranking.

    Source: Wang et al., "HAQ: Hardware-Aware Automated Quantization with Mixed
    Precision", CVPR 2019.
    """
    trials = Trials(case, config)
    problem, limits = case.problem, check_budgeted(case)
    states = layer_states(case.model, problem.candidates)
    steps = len(states)
    agent = Agent(STATE, case.seed, config.warmup, REMEMBERED * steps)
    most = config.warmup + 2 * config.trials  # episodes; some repeat known policies
    for episode in range(most):
        if trials.left <= 0:
            break
        seen, actions, proposed = _proposed(agent, states, problem.candidates, episode)
        bits = within(proposed, problem.candidates, limits)
        risk = float(trials.risk(bits).mean())
        reward = REWARD * (trials.reference - risk)
        following = [*seen[1:], seen[-1]]
        agent.learn(
            [
                Transition(seen[i], actions[i], reward, following[i], i == steps - 1)
                for i in range(steps)
            ],
            episode,
        )
    return trials.best()


def layer_states(
    model: Any, candidates: Candidates
) -> list[tuple[str, int, np.ndarray]]:
    """Returns the agent's observation of each tensor whose bits are to be chosen.

    Ten numbers: whether the layer is depthwise, input channels, output channels,
    stride, kernel width, number of weights, number of input pixels and index, each
    scaled to 0..1 over the layers; the previous action (1 at the start); and 1 for
    weights, 0 for activations.

    Args:
        model: the float model.
        candidates: (weight bits, activation bits) of each layer, in graph order.

    Returns:
        (layer, side: 0 for weights or 1 for activations, float [10]); the weights of a
        layer come before its activations.
    """
    graph = read_graph(model)
    found: dict[str, list[float]] = {}
    for call in graph.calls:
        if not is_searchable(call.layer) or call.name in found:
            continue
        reads, makes = graph.shapes[call.inputs[0]], graph.shapes[call.outputs[0]]
        settings, kind = call.layer.get_config(), KERNEL_KINDS[call.kind]
        found[call.name] = [
            float(kind.depthwise),
            reads[-1],
            makes[-1],
            _first(settings.get("strides", int("w" in kind.axes))),
            _first(settings.get("kernel_size", 1)),
            kernel_size(call.layer),
            math.prod(size or 1 for size in reads[1:-1]),
            len(found),
        ]
    table = np.array([found[name] for name in candidates], "float64")
    low, spread = table.min(axis=0), np.ptp(table, axis=0)
    table = np.where(spread > 0, (table - low) / np.where(spread > 0, spread, 1), table)
    states = []
    for name, own in zip(candidates, table, strict=True):
        for side in (0, 1):
            if len(candidates[name][side]) > 1:
                states.append((name, side, np.array([*own, 1.0, 1.0 - side])))
    return states


def bits_of(action: float, candidates: Sequence[int]) -> int:
    """Returns the bits for an action in 0..1, divided equally among candidates."""
    own = sorted(candidates)
    return own[int(np.clip(round(len(own) * action - 0.5), 0, len(own) - 1))]


def walked(
    bits: Bits, candidates: Candidates, limits: Sequence[Limit]
) -> dict[str, tuple[int, int]] | None:
    """Lowers bits of a policy, candidate by candidate, until it keeps all limits.

    One tensor is lowered at a time: the last layer's activations, then its weights,
    then those of the layer before, and so on; then again from the last layer.

    Args:
        bits: the policy.
        candidates: (weight bits, activation bits) each layer may take.
        limits: limits of the costs.

    Returns:
        The policy; None where even the fewest bits exceed a limit, which happens where
        a cost rises with fewer bits.
    """
    found = dict(bits)
    while exceeded(limits, found):
        before = dict(found)
        for name in reversed(list(found)):
            for side in (1, 0):
                fewer = [b for b in candidates[name][side] if b < found[name][side]]
                if not fewer:
                    continue
                pair = list(found[name])
                pair[side] = max(fewer)
                found[name] = (pair[0], pair[1])
                if not exceeded(limits, found):
                    return found
        if found == before:
            return None
    return found


def within(
    bits: Bits, candidates: Candidates, limits: Sequence[Limit]
) -> dict[str, tuple[int, int]]:
    """Returns a policy that keeps and uses up the budgets, near the one given."""
    found = walked(bits, candidates, limits)
    if found is None:
        near: Any = {
            name: tuple(
                {own: -float((own - bits[name][side]) ** 2) for own in pair[side]}
                for side in (0, 1)
            )
            for name, pair in candidates.items()
        }
        return choose(near, candidates, limits, spends=True)
    return spent_on(found, candidates, limits)


def _proposed(
    agent: Agent,
    states: Sequence[tuple[str, int, np.ndarray]],
    candidates: Candidates,
    episode: int,
) -> tuple[list[np.ndarray], list[float], Bits]:
    """Returns the states of an episode, the agent's actions, and their policy."""
    bits = {n: [max(w), max(a)] for n, (w, a) in candidates.items()}
    seen, actions, previous = [], [], 1.0
    for name, side, state in states:
        seen.append(np.array([*state[:PREVIOUS], previous, state[FLAG]]))
        actions.append(agent.act(seen[-1], episode))
        bits[name][side] = bits_of(actions[-1], candidates[name][side])
        previous = bits[name][side] / max(candidates[name][side])
    return seen, actions, {name: (pair[0], pair[1]) for name, pair in bits.items()}


def _first(sizes: Any) -> float:
    return float(sizes[0] if isinstance(sizes, (list, tuple)) else sizes)
