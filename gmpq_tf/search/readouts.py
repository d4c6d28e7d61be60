"""How trained importances become values of the choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from gmpq_tf.bits import LayerPair
from gmpq_tf.budget import Candidates
from gmpq_tf.search.attribution_risk import exponent
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_measure, check_whole
from gmpq_tf.search.choose import choose
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.deltas import default_images, delta_table
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.values import Bits, Valued, Values
from gmpq_tf.spelling import suggest

Probabilities = Mapping[str, tuple[np.ndarray, np.ndarray]]
DEFAULT_READOUT = "log_probability"
ROUNDS = 3  # largest number of tables that `perturbation` measures


def log_probability(probabilities: Probabilities, candidates: Candidates) -> Values:
    """The value `log pi` of each choice (section 3.3).

    Args:
        probabilities: (pi_w, pi_a) of each layer, [candidates] each.
        candidates: the bit-widths that these belong to.
    """
    logs = {n: tuple(np.log(p + 1e-30) for p in pi) for n, pi in probabilities.items()}
    return _table(logs, candidates)


def expected_bits(probabilities: Probabilities, candidates: Candidates) -> Values:
    """The value `-(b - E[b])^2` of each choice; arguments as for `log_probability`."""
    gaps = {}
    for name, pi in probabilities.items():
        widths = [np.array(of, "float64") for of in candidates[name]]
        gaps[name] = tuple(
            -np.square(of - np.sum(of * p)) for of, p in zip(widths, pi, strict=True)
        )
    return _table(gaps, candidates)


# Name -> function; "perturbation" starts from the policy of `log_probability`.
READOUTS: dict[str, Callable[[Probabilities, Candidates], Values]] = {
    "log_probability": log_probability,
    "expected_bits": expected_bits,
    "perturbation": log_probability,
}


@dataclass(frozen=True)
class ReadoutConfig:
    """How trained importances become values.

    Args:
        readout: log_probability values a choice by the logarithm of its probability,
            as section 3.3; expected_bits by its squared distance from the mean bits,
            which the complexity risk is about; perturbation by the risk that it adds to
            the chosen policy in the trained hypernet, measured and solved again until
            the policy repeats, three times at most.
        readout_measure: What perturbation measures: task (cross-entropy of the labels),
            or divergence (of the outputs from the float model's).
        readout_images: Number of images it measures on; none: as many as loss_delta.
        readout_statistics: Number of images on which it measures the statistics of
            BatchNormalization anew for each policy; 0 keeps those of training, which
            mix several bit-widths.
    """

    readout: str = DEFAULT_READOUT
    readout_measure: str = "task"
    readout_images: int | None = None
    readout_statistics: int = 64

    def __post_init__(self) -> None:
        if self.readout not in READOUTS:
            raise StrategyError(
                f"readout must be one of {', '.join(READOUTS)}. "
                f"Received: readout={self.readout!r}. "
                f"{suggest(str(self.readout), READOUTS)}"
            )
        check_measure(self.readout_measure, "readout_measure")
        if self.readout_images is not None:
            check_whole("readout_images", self.readout_images, 1)
        check_whole("readout_statistics", self.readout_statistics, 0)
        if self.readout != "perturbation":
            for each in fields(ReadoutConfig)[1:]:
                value = getattr(self, each.name)
                if value != each.default:
                    raise StrategyError(
                        f"{each.name} is for readout='perturbation', which measures. "
                        f"Received: {each.name}={value!r}, readout={self.readout!r}. "
                        "Leave it out."
                    )


def read_importances(
    probabilities: Probabilities,
    candidates: Candidates,
    readout: str = DEFAULT_READOUT,
) -> Valued:
    """Values of choices from trained importances, with a column of the probabilities.

    Args:
        probabilities: (pi_w, pi_a) of each layer, [candidates] each.
        candidates: the bit-widths that these belong to.
        readout: a name in `READOUTS`; for "perturbation" its start is returned.
    """
    values = READOUTS[readout](probabilities, candidates)
    column = _table(probabilities, candidates)
    odds = READOUTS[readout] is log_probability
    return Valued(values, columns={"probability": column}, odds=odds, spends=True)


def perturbation(
    case: SearchCase,
    start: Bits,
    config: ReadoutConfig,
    risk: RiskConfig,
    trained: Callable[[], Any],
    steps: int = 0,
    **training: Any,
) -> Valued:
    """Values every choice by the risk that it adds to a policy in the trained hypernet.

    The table measured around one policy gives the next policy, until one repeats, for
    three tables at most; the table whose policy has the least risk is returned. With
    eta above 0 the risk is `R_E + eta R_G`, with the p of eq. 8 for the first policy.

    Args:
        case: the float model, its choices, budgets and labelled images.
        start: policy to start from.
        config: what is measured.
        risk: eta, and the options of R_G.
        trained: returns the hypernet.
        steps: steps of fine-tuning before each measurement; afterwards the hypernet is
            restored.
        **training: `learning_rate` and `batch_size` of fine-tuning.

    Returns:
        The values, with samples and a column for each risk.

    Source: Wang et al., "Rethinking Architecture Selection in Differentiable NAS", ICLR
    2021, section 4. Unlike the paper all layers are measured around one policy, and a
    knapsack with the budgets chooses.
    """
    problem, measure = case.problem, config.readout_measure
    columns: dict[str, float] = {measure: 1.0}
    if risk.eta:
        bits = [LayerPair(float(w), float(a)) for w, a in start.values()]
        p = float(exponent(risk, bits))
        risk = replace(risk, p=p)
        columns["attribution"] = risk.eta
    evaluator = Evaluator(
        case,
        config.readout_images or default_images(case),
        attribution=risk.eta > 0,
        risk=risk,
        statistics=config.readout_statistics,
        labels=measure == "task",
        trained=trained,
    )

    def risk_of(bits: Bits) -> float:
        found = evaluator.measure(bits, steps, **training)
        return sum(float(w * found.column(c).mean()) for c, w in columns.items())

    seen, tables, history = [dict(start)], [], []
    for _ in range(ROUNDS):
        table = delta_table(
            evaluator, seen[-1], problem.candidates, columns, steps=steps, **training
        )
        history.extend(table.history)
        best = choose(table.values, problem.candidates, problem.limits)
        evaluator.expect(1, steps, **training)
        tables.append((risk_of(best), table))
        if best in seen:
            break
        seen.append(best)
    _, found = min(tables, key=lambda each: each[0])
    return replace(found, history=tuple(history))


def _table(
    arrays: Mapping[str, tuple[np.ndarray, ...]], candidates: Candidates
) -> Values:
    found: dict[str, Any] = {}
    for name, pair in candidates.items():
        found[name] = tuple(
            {width: float(v) for width, v in zip(widths, own, strict=True)}
            for widths, own in zip(pair, arrays[name], strict=True)
        )
    return found
