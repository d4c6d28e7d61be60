"""Shared by strategies with gradients: training of a `PolicySearch`, and reading it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import keras
import numpy as np

from gmpq_tf.search.callbacks import ImportanceLearningRateScheduler
from gmpq_tf.search.case import SearchCase
from gmpq_tf.search.checks import check_number, check_whole
from gmpq_tf.search.choose import choose
from gmpq_tf.search.config import RiskConfig
from gmpq_tf.search.divergence import check_converged
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.search.formulation import PAPER, Formulation
from gmpq_tf.search.gates import trained_model
from gmpq_tf.search.generalizations import generalization_of
from gmpq_tf.search.judge import Judge
from gmpq_tf.search.policy_search import PolicySearch
from gmpq_tf.search.readouts import ReadoutConfig, perturbation, read_importances
from gmpq_tf.search.rules import RuleConfig
from gmpq_tf.search.values import Valued

# Learning rates fall as in section 4.1, after 10 and 20 of 25 epochs.
DECAYS, DECAY = (0.4, 0.8), 0.1
MOMENTUM = 0.9
LOOKED_AT = 64  # images whose labels are inspected to find their kind
WEIGHTS = "trained"  # file of the hypernet's weights, kept beside the journal
# Cost of a training step in steps of the float model; measured for mixtures, see
# results/search_step.
STEP_COST = {"edmips": 1.08, "gmpq": 1.40}


@dataclass(frozen=True)
class TrainingConfig(ReadoutConfig, RuleConfig):
    """How the importances are trained, and how they are read.

    Args:
        epochs: Passes over the images.
        learning_rate: Initial learning rate of weights and ranges; it falls to a tenth
            after two fifths and again after four fifths of the epochs, of which the
            first keeps the rate.
        importance_learning_rate: Initial learning rate of the importances; it falls
            likewise.
    """

    epochs: int = 25
    learning_rate: float = 0.1
    importance_learning_rate: float = 0.01

    def __post_init__(self) -> None:
        ReadoutConfig.__post_init__(self)
        RuleConfig.__post_init__(self)
        check_whole("epochs", self.epochs, 0)
        for name in ("learning_rate", "importance_learning_rate"):
            check_number(name, getattr(self, name), 0.0, exclusive=True)

    def takes_gradients(self) -> RuleConfig:
        """Returns the options of the gradient rule alone."""
        return RuleConfig(**{f.name: getattr(self, f.name) for f in fields(RuleConfig)})


@dataclass(frozen=True)
class GuidedConfig(TrainingConfig):
    """Options of `TrainingConfig`, and of the generalization risk.

    Args:
        eta: Weight of the generalization risk; 0: none.
        generalization: What the generalization risk compares: attribution (maps, eq.
            4), partitioned (groups of pixels near in rank, after R-GMPQ), margin (how
            well classes are separated, after SEAM), none. partitioned and margin are
            our reconstructions.
        groups: Number of groups of pixels, for partitioned.
        p: Exponent of the float model's map; none: the capacity-aware p of eq. 8.
        top_k: Pixels of the float model's map that count, the highest first.
        attribution_class: Class whose score is attributed, label or predicted.
        map_size: Compare maps at the resolution of the input, or native.
        weight_capacity: Q_w0 of eq. 8, in bits.
        activation_capacity: Q_a0 of eq. 8, in bits.
        feature_layer: Layer whose output is attributed; none: the last feature map.
        attribution_share: Share of each batch the risk is taken on.
    """

    eta: float = 0.0
    generalization: str = RiskConfig.generalization
    groups: int = RiskConfig.groups
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
        check_number("eta", self.eta, 0.0)
        row: Any = generalization_of(self.generalization)
        risk = risk_of(self)
        if self.readout == "perturbation" and risk.eta and not row.of_image:
            raise StrategyError(
                "readout='perturbation' measures image by image. Received: "
                f"generalization={self.generalization!r}, which is of a batch. Take "
                "another readout, or generalization='attribution'."
            )


@dataclass(frozen=True)
class Recipe:
    """The parts in which strategies with gradients differ.

    Args:
        relaxation: a name in `RELAXATIONS`.
        zeta: weight of the complexity risk or of the penalty.
        formulation: how budgets are kept; its gradient rule is replaced by the
            config's.
        callbacks: callbacks of training, besides those that lower learning rates.
        clip: gradients of importances are clipped to this absolute value; None: not.
        adam: whether the importances are trained by Adam instead of SGD with momentum.
        decays: whether their learning rate falls, as that of the weights does.
    """

    relaxation: str
    zeta: float
    formulation: Formulation = PAPER
    callbacks: Sequence[keras.callbacks.Callback] = field(default_factory=tuple)
    clip: float | None = None
    adam: bool = False
    decays: bool = True

    def importance_optimizer(self, rate: float) -> keras.optimizers.Optimizer:
        """Returns the optimizer of the importances with a learning rate."""
        if self.adam:
            return keras.optimizers.Adam(rate, clipvalue=self.clip)
        return keras.optimizers.SGD(rate, momentum=MOMENTUM, clipvalue=self.clip)


def valued_by_training(
    case: SearchCase, name: str, config: TrainingConfig, recipe: Recipe
) -> Valued:
    """Trains importances by a recipe, unless the journal has them, and reads them.

    Args:
        case: the float model, its choices, budgets and labelled images.
        name: name of the strategy.
        config: its options.
        recipe: its relaxation, penalty and optimizer.

    Returns:
        The values, without standard errors.

    Raises:
        StrategyError: labels or a budget that it needs are missing.
    """
    formulation = replace(recipe.formulation, rule=config.takes_gradients())
    formulation.check_budget(case.problem.limits)
    recipe = replace(recipe, formulation=formulation)
    loss = _task_loss(case, name)
    risk = replace(risk_of(config), zeta=recipe.zeta)
    searches: list[PolicySearch] = []

    def train() -> dict[str, Any]:
        searches.append(_made(case, recipe, risk))
        answer = _train(case, config, recipe, searches[0], loss)
        if config.readout == "perturbation" or "kept" in answer:
            case.journal.keep(WEIGHTS, searches[0].hypernet.variables)
        return answer

    def trained() -> keras.Model:
        if not searches:  # trained before an interruption: read the weights
            searches.append(_made(case, recipe, risk))
            case.journal.give_back(WEIGHTS, searches[0].hypernet.variables)
        return searches[0].hypernet

    answer = case.journal.once({"train": name, "options": vars(config)}, train)
    probabilities = {
        layer: (np.array(weights), np.array(inputs))
        for layer, (weights, inputs) in answer["probabilities"].items()
    }
    problem = case.problem
    kept = {n: tuple(mask) for n, mask in answer.get("kept", {}).items()}
    # Before measuring, which changes importances.
    model = trained_model(case.model, trained()) if kept else None
    read = read_importances(probabilities, problem.candidates, config.readout)
    if config.readout != "perturbation":
        return replace(read, history=answer["history"], kept=kept, trained=model)
    problem = case.pruned(kept).problem
    case = replace(case, problem=problem)  # the pruned model must keep the budgets
    start = choose(read.values, problem.candidates, problem.limits, spends=True)
    found = perturbation(case, start, config, risk, trained)
    return replace(
        found,
        columns={**read.columns, **found.columns},
        kept=kept,
        trained=model,
        history={"training": answer["history"], "measured": list(found.history)},
    )


def risk_of(config: Any) -> RiskConfig:
    """Returns a `RiskConfig` with the fields of a config; eta is 0 if it has none.

    Args:
        config: the options of a strategy.

    Raises:
        ValueError: a value is out of range.
    """
    known = {each.name for each in fields(RiskConfig)}
    return RiskConfig(
        **{"eta": 0.0, **{k: v for k, v in vars(config).items() if k in known}}
    )


def _made(case: SearchCase, recipe: Recipe, risk: RiskConfig) -> PolicySearch:
    """Returns the hypernet with its risks, not trained yet."""
    keras.utils.set_random_seed(case.seed)
    methods: dict[str, Any] = dict(case.quantizers)
    return PolicySearch(
        case.model,
        case.problem.space,
        risk=replace(risk, **case.budget),
        relaxation=recipe.relaxation,
        formulation=recipe.formulation,
        **methods,
    )


def step_cost(search: PolicySearch) -> float:
    """Returns the cost of a training step, in steps of the float model."""
    return STEP_COST["gmpq" if search.risk.eta else "edmips"] * search.rule.passes


def _train(
    case: SearchCase,
    config: TrainingConfig,
    recipe: Recipe,
    search: PolicySearch,
    loss: Any,
) -> dict[str, Any]:
    """Trains; returns branch probabilities of each layer, and logs, as plain JSON."""
    search.compile(
        keras.optimizers.SGD(config.learning_rate, momentum=MOMENTUM),
        recipe.importance_optimizer(config.importance_learning_rate),
        loss=loss,
    )
    search.calibrate(case.calibration())
    case.meter.forward(case.calibration_images)
    callbacks = [*_decays(config, recipe.decays), *recipe.callbacks]
    history = case.fit(search, config.epochs, callbacks)
    check_converged(search)
    steps = int(np.asarray(search.optimizer.iterations))
    case.meter.training(steps * case.data.batch_images, step_cost(search))
    probabilities = search.branches.probabilities()
    kept = {name: list(mask) for name, mask in search.kept_channels().items()}
    return {
        **({"kept": kept} if kept else {}),
        "probabilities": {
            n: [p.tolist() for p in pi] for n, pi in probabilities.items()
        },
        "history": history,
    }


def _task_loss(case: SearchCase, name: str) -> Any:
    """Returns the loss that suits model and labels.

    Raises:
        StrategyError: there are no labels, or several outputs.
        TaskError: the labels do not fit the model.
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
    return Judge(case.model, scores, held.labels, case.output_kinds).keras_loss()


def _decays(config: TrainingConfig, both: bool) -> list[keras.callbacks.Callback]:
    """Returns callbacks that lower learning rates after shares of the epochs."""
    # A single epoch keeps the rate that was asked for.
    starts = [max(round(share * config.epochs), 1) for share in DECAYS]

    def at(rate: float) -> Any:
        return lambda epoch, _: rate * DECAY ** sum(epoch >= start for start in starts)

    of_importances = ImportanceLearningRateScheduler(
        at(config.importance_learning_rate)
    )
    weights = keras.callbacks.LearningRateScheduler(at(config.learning_rate))
    return [weights, of_importances] if both else [weights]
