"""GMPQ as a Keras model: `compile`, `fit`, `policy()`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from gmpq_tf import metric_names
from gmpq_tf.cost_tables import TableOptions
from gmpq_tf.layers.relaxation import DEFAULT_RELAXATION
from gmpq_tf.metric_names import TOTAL
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.search.complexity import complexities
from gmpq_tf.search.config import RiskConfig, chosen_risk
from gmpq_tf.search.divergence import WatchedMean, check_converged
from gmpq_tf.search.formulation import PAPER, Formulation, prepare
from gmpq_tf.search.generalizations import generalization_of
from gmpq_tf.search.importances import Importances
from gmpq_tf.search.optimizers import (
    check_optimizers,
    check_precision,
    describe_optimizer,
)
from gmpq_tf.search.problem import SearchProblem
from gmpq_tf.search.provenance import made_by_search
from gmpq_tf.search.risks import Risk
from gmpq_tf.search.rules import RULES
from gmpq_tf.search.search_steps import SearchSteps
from gmpq_tf.space import SearchSpace
from gmpq_tf.task import Binary, outputs_of
from gmpq_tf.transform import build_hypernet
from gmpq_tf.transform.rewrite import flat_copy


@keras.saving.register_keras_serializable("gmpq_tf")
class PolicySearch(SearchSteps):
    """Searches the bit-width of every layer's weights and activations.

    Minimizes `R_E + zeta R_C + eta R_G` (eq. 6) over the hypernet's weights and branch
    importances together: the task loss, the expected bit operations (eq. 7) as a
    fraction of full precision, and the distance of the hypernet's attribution map from
    the l_p-normalized one of the float model, which is frozen and in inference mode.

        search = gmpq.PolicySearch(model, bit_ops_budget=0.0107)
        search.compile("sgd", "sgd", loss=..., metrics=["accuracy"])
        search.fit(dataset, epochs=25)
        policy = search.policy()

    Args:
        model: built functional classifier, trained; it is not modified.
        space: candidate bit-widths.
        input_quantizer: a name in `INPUT_QUANTIZERS`; None: the default.
        kernel_quantizer: a name in `KERNEL_QUANTIZERS`; None: the default.
        name: name of the Keras model.
        risk: all options below in one object, instead of them.
        zeta: weight of the complexity risk; with a budget, its initial value.
        eta: weight of the generalization risk; 0 searches by EdMIPS, without a teacher.
        bit_ops_budget: bit operations the policy may cost: up to 1 a fraction of full
            precision (32 x 32 bits), above 1 a count. None: zeta stays as given, or
            follows `budget`.
        p: exponent of the teacher's map; None: the capacity-aware p of eq. 8.
        top_k: pixels of the teacher's map that count, the highest first.
        attribution_class: class whose score is attributed, "label" or "predicted".
        map_size: compare maps at the resolution of the "input", or "native".
        weight_capacity: Q_w0 of eq. 8, in bits.
        activation_capacity: Q_a0 of eq. 8, in bits.
        feature_layer: layer whose output is attributed; None: the last feature map.
        teacher_dtype: float type of the float model, "float32" or "bfloat16".
        budget: what the policy may cost, instead of `bit_ops_budget`, as people say
            it: "W4A4", "60kB" of file, "2.5ms", ("W4A4", "60kB"), {"bit_ops": 0.01,
            "weight_bytes": "60kB"}; all are kept. See `gmpq_tf.budget`.
        storage: storage of the file, for budgets of bytes and milliseconds: "fast",
            "packed" or "smallest"; None: "smallest" if the file's bytes are budgeted.
        latency_table: JSON file of `gmpq-latency`, for a budget of milliseconds.
        attribution_share: share of each batch on which the generalization risk is
            computed, above 0; less than 1 is faster, and an unbiased estimate.
        generalization: what the generalization risk compares: "attribution" (maps),
            "partitioned" (groups of pixels), "margin" (classes), "none" as eta=0.
        groups: number of groups of pixels, for "partitioned".
        class_names: class names of the file, if its bytes are budgeted; (): room for
            names of nine letters is planned.
        relaxation: how layers compute with several bit-widths at once: "mixture" adds
            their outputs (eq. 5), "sampled" draws one in each step, "expected_grid"
            rounds once on the mean grid. A mixture averages the rounding errors of its
            branches; the last two do not, so importances tell which layer needs bits.
        formulation: how budgets are kept and gradients taken; None: the paper's way.
        **unknown: refused, with the nearest name of an option.

    Raises:
        GraphError: the model is not a functional classifier with a feature map.
        BudgetError: no policy of the space meets the budget.
        TypeError: an option does not exist.
        ValueError: an option is out of range, or given twice.
    """

    def __init__(
        self,
        model: keras.Model,
        space: SearchSpace | None = None,
        input_quantizer: str | None = None,
        kernel_quantizer: str | None = None,
        name: str | None = None,
        *,
        risk: RiskConfig | None = None,
        zeta: float = RiskConfig.zeta,
        eta: float = RiskConfig.eta,
        bit_ops_budget: float | None = RiskConfig.bit_ops_budget,
        p: float | None = RiskConfig.p,
        top_k: int = RiskConfig.top_k,
        attribution_class: str = RiskConfig.attribution_class,
        map_size: str = RiskConfig.map_size,
        weight_capacity: float = RiskConfig.weight_capacity,
        activation_capacity: float = RiskConfig.activation_capacity,
        feature_layer: str | None = RiskConfig.feature_layer,
        teacher_dtype: str = RiskConfig.teacher_dtype,
        budget: Any = RiskConfig.budget,
        storage: str | None = RiskConfig.storage,
        latency_table: str | None = RiskConfig.latency_table,
        attribution_share: float = RiskConfig.attribution_share,
        generalization: str = RiskConfig.generalization,
        groups: int = RiskConfig.groups,
        class_names: Sequence[str] = (),
        relaxation: str = DEFAULT_RELAXATION,
        formulation: Formulation | None = None,
        **unknown: Any,
    ) -> None:
        # Under a global mixed_float16 policy Keras would scale the loss for its own
        # optimizer, and the importances' optimizer would not undo it.
        super().__init__(name=name, dtype="float32")
        self.risk = chosen_risk(
            risk,
            zeta=zeta,
            eta=eta,
            bit_ops_budget=bit_ops_budget,
            p=p,
            top_k=top_k,
            attribution_class=attribution_class,
            map_size=map_size,
            weight_capacity=weight_capacity,
            activation_capacity=activation_capacity,
            feature_layer=feature_layer,
            teacher_dtype=teacher_dtype,
            budget=budget,
            storage=storage,
            latency_table=latency_table,
            attribution_share=attribution_share,
            generalization=generalization,
            groups=groups,
            **unknown,
        )
        methods = {
            "input_quantizer": input_quantizer,
            "kernel_quantizer": kernel_quantizer,
        }
        self.quantizers = {key: value for key, value in methods.items() if value}
        self.relaxation, self.formulation = relaxation, formulation or PAPER
        self.class_names = tuple(class_names)
        self.problem = SearchProblem.of(
            model,
            space,
            self.risk.bit_ops_budget,
            self.risk.budget,
            TableOptions(
                self.risk.storage,
                self.risk.latency_table,
                self.quantizers.get("kernel_quantizer"),
                self.class_names,
            ),
        )
        self.formulation.check_budget(self.problem.limits)
        gates = self.formulation.gates
        options: dict[str, Any] = {**self.quantizers, "relaxation": relaxation}
        if gates is not None:
            options["gate_start"] = gates.gate_start
            options["whole_layers"] = gates.whole_layers or ()
        self.hypernet = build_hypernet(model, self.problem.space, **options)
        self.output_names = list(self.hypernet.output_names)
        # As text, which Keras does not track; before freezing, which changes it.
        serialize = keras.saving.serialize_keras_object
        flat = flat_copy(model)
        self._model_config = json.dumps(serialize(flat))
        self.branches = Importances(self.hypernet, self.problem.candidates)
        priced = complexities(
            self.problem, self.risk.zeta, self.add_weight, self.formulation
        )
        self.complexity, self.generalization = priced[0], None
        self.risks: tuple[Risk, ...] = priced
        if self.risk.eta:
            make = generalization_of(self.risk.generalization)
            self.generalization = make(self.hypernet, flat, self.risk, self.add_weight)
            self.risks += (self.generalization,)
        self.risks += prepare(self)
        # An attribute of the model itself, so that Keras tracks it.
        self.teacher = self.generalization and self.generalization.teacher
        self.rule = RULES[self.formulation.rule.rule](
            self.formulation.rule, self.hypernet, self.branches.draws, self.add_weight
        )
        self.epochs_trained = 0
        self.risk_metrics = {
            key: WatchedMean(name=key)
            for key in dict.fromkeys(
                (TOTAL, *metric_names.RISKS, *(risk.name for risk in self.risks))
            )
        }
        self.rank_metric = self.generalization and self.generalization.rank_metric
        self.built = True

    def compile(
        self,
        optimizer: Any = "sgd",
        importance_optimizer: Any = "sgd",
        loss: Any = None,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configures training, as `keras.Model.compile`.

        Args:
            optimizer: optimizer of the hypernet's weights and ranges.
            importance_optimizer: optimizer of the branch importances.
            loss: task loss of (labels, model output); labels are sparse or one-hot; for
                one logit 1 or 0 (or -1), for independent sigmoids any number of ones.
            metrics: metrics of (labels, model output).
            **kwargs: passed to `keras.Model.compile` (jit_compile, run_eagerly, ...).

        Raises:
            ValueError: an optimizer averages weights or divides by a loss scale, both
                are the same object, or a layer computes in float16.
        """
        optimizer = keras.optimizers.get(optimizer)
        importance_optimizer = keras.optimizers.get(importance_optimizer)
        check_optimizers(optimizer, importance_optimizer)
        check_precision(self.hypernet)
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)
        self.importance_optimizer = importance_optimizer
        self.optimizers_described = json.dumps(
            {
                "optimizer": describe_optimizer(optimizer),
                "importance_optimizer": describe_optimizer(importance_optimizer),
            }
        )
        if self.generalization is not None:
            kind = outputs_of(self.generalization.teacher, loss=loss)[0].kind
            self.generalization.independent_labels = isinstance(kind, Binary)
        self.optimizer.build(self.network_variables)
        self.importance_optimizer.build(self.importance_variables)

    def policy(self, made_by: Mapping[str, Any] | None = None) -> BitwidthPolicy:
        """The policy of the largest importances (section 3.3), within the budgets.

        With a budget it is the most probable policy whose cost lies at most 3 % below
        the budget (or as near below as the space allows); further budgets are kept too.

        Args:
            made_by: provenance to record; strategy and options are added.

        Raises:
            DivergenceError: an importance, another variable of the search, or a loss of
                the last `fit` is not finite.
        """
        check_converged(self)
        bits = self.problem.most_probable_bits(self.branches.probabilities())
        record = {**made_by_search(self, bits), **(made_by or {})}
        return BitwidthPolicy(self.hypernet.name, bits, record)

    def get_compile_config(self) -> dict | None:
        """The arguments of `compile`, with the importances' optimizer."""
        config = super().get_compile_config()
        if config is not None:
            serialize = keras.saving.serialize_keras_object
            config["importance_optimizer"] = serialize(self.importance_optimizer)
        return config

    def compile_from_config(self, config: dict) -> None:
        """Compiles as the saved model was."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def get_config(self) -> dict:
        """Configuration, with the float model's architecture."""
        formulated: dict[str, Any] = {}
        if self.formulation != PAPER:
            formulated["formulation"] = self.formulation.to_config()
        return {
            "name": self.name,
            "model": json.loads(self._model_config),
            "space": self.space.to_config(),
            **self.quantizers,
            **vars(self.risk),
            "class_names": list(self.class_names),
            "relaxation": self.relaxation,
            **formulated,
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: Any = None) -> PolicySearch:
        """Rebuilds from the result of `get_config`; Keras loads weights afterwards."""
        config = dict(config)
        model = keras.saving.deserialize_keras_object(
            config.pop("model"), custom_objects=custom_objects
        )
        space = SearchSpace.from_config(config.pop("space"))
        if "formulation" in config:
            config["formulation"] = Formulation.from_config(config["formulation"])
        return cls(model, space, **config)
