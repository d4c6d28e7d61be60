"""Strategies with gradients: `PolicySearch`, trained by the host, is read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import keras
import numpy as np

from gmpq_tf.layers.relaxation import DEFAULT_RELAXATION, relaxation_of
from gmpq_tf.search.callbacks import ImportanceLearningRateScheduler
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_number, check_whole
from gmpq_tf.search.choose import choose
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.divergence import check_converged
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.judge import Judge
from gmpq_tf.search.policy_search import PolicySearch
from gmpq_tf.search.readouts import ReadoutConfig, perturbation, read_importances
from gmpq_tf.search.values import Valued

# Of the recipe of section 4.1, in shares of the epochs: 10 and 20 of 25.
DECAYS, DECAY = (0.4, 0.8), 0.1
MOMENTUM = 0.9
LOOKED_AT = 64  # images whose labels tell what they say
WEIGHTS = "trained"  # of the hypernet, kept beside the journal
# What a step costs beside one of the float model; measured of mixtures, see
# results/search_step.
STEP_COST = {"edmips": 1.08, "gmpq": 1.40}


@dataclass(frozen=True)
class EdMIPSConfig(ReadoutConfig):
    """How the importances are trained, and read.

    Args:
        epochs: Passes over the images.
        learning_rate: Of weights and ranges; a tenth after two and four fifths of the
            epochs.
        importance_learning_rate: Of the importances, likewise.
        zeta: Where the weight of the complexity risk starts.
        relaxation: How layers compute with several bit-widths at once: mixture adds
            their outputs, as eq. 5; sampled draws one in each step; expected_grid
            rounds once on the mean grid. A mixture averages rounding errors, so that
            its importances hardly tell a layer that needs its bits from another.
    """

    epochs: int = 25
    learning_rate: float = 0.1
    importance_learning_rate: float = 0.01
    zeta: float = RiskConfig.zeta
    relaxation: str = DEFAULT_RELAXATION

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("epochs", self.epochs, 0)
        for name in ("learning_rate", "importance_learning_rate"):
            check_number(name, getattr(self, name), 0.0, exclusive=True)
        check_number("zeta", self.zeta, 0.0)
        relaxation_of(self.relaxation)


@dataclass(frozen=True)
class GMPQConfig(EdMIPSConfig):
    """As `EdMIPSConfig`, and the generalization risk; see `RiskConfig`.

    Args:
        eta: Weight of the generalization risk, above 0.
        p: Exponent of the float model's map; none: the capacity-aware p of eq. 8.
        top_k: Pixels of the float model's map that count, the highest first.
        attribution_class: Class whose score is attributed, label or predicted.
        map_size: Compare maps at the resolution of the input, or native.
        weight_capacity: Q_w0 of eq. 8, in bits.
        activation_capacity: Q_a0 of eq. 8, in bits.
        feature_layer: Layer whose output is attributed; none: the last feature map.
        attribution_share: Share of each batch the risk is taken on.
    """

    eta: float = RiskConfig.eta
    p: float | None = RiskConfig.p
    top_k: int = RiskConfig.top_k
    attribution_class: str = RiskConfig.attribution_class
    map_size: str = RiskConfig.map_size
    weight_capacity: float = RiskConfig.weight_capacity
    activation_capacity: float = RiskConfig.activation_capacity
    feature_layer: str | None = RiskConfig.feature_layer
    attribution_share: float = RiskConfig.attribution_share

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("eta", self.eta, 0.0, exclusive=True)
        RiskConfig(**_risk_options(self))


def edmips(case: SearchCase, config: EdMIPSConfig) -> Valued:
    """Values choices by importances trained on `R_E + zeta R_C` (EdMIPS).

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: how they are trained.

    Returns:
        The values; importances have no measured error.
    """
    return _trained(case, config, RiskConfig(eta=0.0, zeta=config.zeta), "edmips")


def gmpq(case: SearchCase, config: GMPQConfig) -> Valued:
    """Values choices by importances trained on `R_E + zeta R_C + eta R_G` (eq. 6).

    Args:
        case: the float model, its choices, budgets and labelled images.
        config: how they are trained.

    Returns:
        The values; importances have no measured error.
    """
    return _trained(case, config, RiskConfig(**_risk_options(config)), "gmpq")


def _trained(
    case: SearchCase, config: EdMIPSConfig, risk: RiskConfig, name: str
) -> Valued:
    loss = _task_loss(case, name)
    searches: list[PolicySearch] = []

    def train() -> dict[str, Any]:
        searches.append(_made(case, config, risk))
        answer = _train(case, config, searches[0], loss)
        if config.readout == "perturbation":
            case.journal.keep(WEIGHTS, searches[0].hypernet.variables)
        return answer

    def trained() -> keras.Model:
        if not searches:  # it was trained before an interruption
            searches.append(_made(case, config, risk))
            case.journal.give_back(WEIGHTS, searches[0].hypernet.variables)
        return searches[0].hypernet

    answer = case.journal.once({"train": name, "options": vars(config)}, train)
    probabilities = {
        layer: (np.array(weights), np.array(inputs))
        for layer, (weights, inputs) in answer["probabilities"].items()
    }
    problem = case.problem
    read = read_importances(probabilities, problem.candidates, config.readout)
    if config.readout != "perturbation":
        return replace(read, history=answer["history"])
    start = choose(read.values, problem.candidates, problem.limits)
    found = perturbation(case, start, config, risk, trained)
    return replace(
        found,
        columns={**read.columns, **found.columns},
        history={"training": answer["history"], "measured": list(found.history)},
    )


def _made(case: SearchCase, config: EdMIPSConfig, risk: RiskConfig) -> PolicySearch:
    """The search, not trained yet."""
    keras.utils.set_random_seed(case.seed)
    methods: dict[str, Any] = dict(case.quantizers)
    return PolicySearch(
        case.model,
        case.problem.space,
        risk=replace(risk, **case.budget),
        relaxation=config.relaxation,
        **methods,
    )


def step_cost(search: PolicySearch) -> float:
    """What a step of a search costs, in steps of the float model."""
    return STEP_COST["gmpq" if search.risk.eta else "edmips"]


def _train(
    case: SearchCase, config: EdMIPSConfig, search: PolicySearch, loss: Any
) -> dict[str, Any]:
    """Branch probabilities of each layer, and what training logged; plain JSON."""
    search.compile(
        keras.optimizers.SGD(config.learning_rate, momentum=MOMENTUM),
        keras.optimizers.SGD(config.importance_learning_rate, momentum=MOMENTUM),
        loss=loss,
    )
    search.calibrate(case.calibration())
    case.meter.forward(case.calibration_images)
    history = case.fit(search, config.epochs, _decays(config))
    check_converged(search)
    steps = int(np.asarray(search.optimizer.iterations))
    case.meter.training(steps * case.data.batch_images, step_cost(search))
    probabilities = search.branches.probabilities()
    return {
        "probabilities": {
            n: [p.tolist() for p in pi] for n, pi in probabilities.items()
        },
        "history": history,
    }


def _task_loss(case: SearchCase, name: str) -> Any:
    """The loss that suits model and labels.

    Raises:
        StrategyError: there are no labels, or several outputs.
        TaskError: labels that do not fit the model.
    """
    held = case.data.first(LOOKED_AT)
    if held.labels is None:
        raise StrategyError(
            f"The strategy {name!r} trains on labels. Received: a data set of inputs "
            "alone. Pass (inputs, labels), or search with strategy='loss_delta', which "
            "needs none."
        )
    if len(case.model.outputs) != 1:
        raise StrategyError(
            f"The strategy {name!r} searches models of one output. "
            f"Received: model={case.model.name!r} with {len(case.model.outputs)}. "
            "Train a gmpq_tf.PolicySearch, or search with strategy='loss_delta'."
        )
    outputs = case.model(case.data.inputs.structured(held.inputs), training=False)
    scores = [np.asarray(each) for each in keras.tree.flatten(outputs)]
    return Judge(case.model, scores, held.labels).keras_loss()


def _risk_options(config: GMPQConfig) -> dict[str, Any]:
    """The options of a config that `RiskConfig` has too."""
    known = {field.name for field in fields(RiskConfig)}
    return {k: v for k, v in vars(config).items() if k in known}


def _decays(config: EdMIPSConfig) -> list[keras.callbacks.Callback]:
    """Callbacks that lower both learning rates at shares of the epochs."""
    starts = [round(share * config.epochs) for share in DECAYS]

    def at(rate: float) -> Any:
        return lambda epoch, _: rate * DECAY ** sum(epoch >= start for start in starts)

    return [
        keras.callbacks.LearningRateScheduler(at(config.learning_rate)),
        ImportanceLearningRateScheduler(at(config.importance_learning_rate)),
    ]
