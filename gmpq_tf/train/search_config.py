"""How a policy is searched by training: the options, and what they may be."""

from __future__ import annotations

import dataclasses

from gmpq_tf.layers.relaxation import DEFAULT_RELAXATION, relaxation_of
from gmpq_tf.quantizers.kernel_quantizer import (
    DEFAULT_KERNEL_QUANTIZER,
    kernel_method,
)
from gmpq_tf.search import RiskConfig
from gmpq_tf.search.readouts import ReadoutConfig
from gmpq_tf.search.rules import RuleConfig
from gmpq_tf.space import SearchSpace
from gmpq_tf.train.recipe import (
    OptimizerName,
    TrainingConfig,
    require,
    require_positive,
)


@dataclasses.dataclass(frozen=True)
class SearchConfig(TrainingConfig):
    """How a policy is searched. Defaults: section 4.1 and the official command.

    Args:
        model: Float model, a .keras or .h5 file; none: the workdir's
            pretrain/model.keras.
        importance_optimizer: Optimizer of the branch importances.
        importance_learning_rate: Learning rate of the importances in the first epoch;
            it follows the same schedule as that of the weights.
        final_temperature: Temperature of the softmax over importances in the last
            epoch, reached from 1; 1 keeps the softmax of the paper throughout, less
            moves the mixture towards the most probable policy.
        calibration_images: Training images that set the first activation ranges.
        kernel_quantizer: How kernels are quantized: lsq, max_abs, apot (2 to 6 bits),
            alq (2 to 7 bits) or rq (drawn in training); none: lsq.
        relaxation: How layers compute with several bit-widths at once: mixture takes
            the weighted sum of all quantized tensors (eq. 5); sampled draws one
            bit-width in each step; expected_grid rounds once on the mean grid. The last
            two do not average rounding errors. adjacent, nested, thresholds,
            learned_grid and drawn_neighbour are those of the strategies fracbits,
            bayesian_bits, hmq, dq and sdq.
        readout: how the importances are read.
        rule: how gradients are taken.
        risk: the risks and the budget.
        space: the candidates.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int = 25
    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    decay_epochs: tuple[int, ...] = (10, 20)
    model: str | None = None
    importance_optimizer: OptimizerName = "sgd"
    importance_learning_rate: float = 0.01
    final_temperature: float = 1.0
    calibration_images: int = 512
    kernel_quantizer: str | None = None
    relaxation: str = DEFAULT_RELAXATION
    readout: ReadoutConfig = dataclasses.field(default_factory=ReadoutConfig)
    rule: RuleConfig = dataclasses.field(default_factory=RuleConfig)
    risk: RiskConfig = dataclasses.field(default_factory=RiskConfig)
    space: SearchSpace = dataclasses.field(default_factory=SearchSpace)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "importance_learning_rate")
        require_positive(self, "final_temperature")
        require(self, "calibration_images", self.calibration_images > 0, "1 or more")
        kernel_method(self.kernel_quantizer or DEFAULT_KERNEL_QUANTIZER)
        relaxation_of(self.relaxation)
        # Loss scaling belongs to one optimizer; a search has two for the same loss.
        narrow = self.precision == "mixed_float16"
        require(self, "precision", not narrow, "float32 or mixed_bfloat16 in a search")


@dataclasses.dataclass(frozen=True)
class ComplexityConfig:
    """The options of `RiskConfig` that a search without attribution has.

    Args:
        zeta: weight of the complexity risk; with a budget, its initial value.
        bit_ops_budget: bit operations the policy may cost: up to 1 a fraction of full
            precision (32 x 32 bits), above 1 a count. None: zeta stays as given, or is
            adjusted to keep `budget`.
        budget: what the policy may cost, instead of bit_ops_budget: the same numbers,
            or such as 5%, W4A4, 0.5GBOPs, 60kB (of the .tflite file), 2.5ms, or
            weight_bytes=60kB; several with commas between them, all of which it keeps.
        storage: storage of kernels in the .tflite file that a budget of bytes or
            milliseconds is about: fast, packed or smallest. None: smallest where the
            file's bytes are budgeted, else fast.
        latency_table: JSON file that gmpq-latency wrote, for a budget of milliseconds.
    """

    zeta: float = RiskConfig.zeta
    bit_ops_budget: float | None = RiskConfig.bit_ops_budget
    budget: str | None = RiskConfig.budget
    storage: str | None = RiskConfig.storage
    latency_table: str | None = RiskConfig.latency_table


@dataclasses.dataclass(frozen=True)
class EdMIPSSearchConfig(SearchConfig):
    """How a policy is searched by EdMIPS: `SearchConfig` without attribution.

    Args:
        risk: the complexity risk and the budget.
    """

    risk: ComplexityConfig = dataclasses.field(  # type: ignore[assignment]
        default_factory=ComplexityConfig
    )

    def with_risk(self) -> SearchConfig:
        """Returns the same search as a `SearchConfig` whose eta is 0."""
        return SearchConfig(
            **{**vars(self), "risk": RiskConfig(eta=0.0, **vars(self.risk))}
        )
