"""How a quantized model is fine-tuned: the options, and what they may be."""

from __future__ import annotations

import dataclasses

from gmpq_tf.budget import parse_budget
from gmpq_tf.cost_tables import TableOptions
from gmpq_tf.limits import given_budget
from gmpq_tf.quantizers.kernel_quantizer import (
    DEFAULT_KERNEL_QUANTIZER,
    kernel_method,
)
from gmpq_tf.train.policies import check_other_layers
from gmpq_tf.train.recipe import Schedule, TrainingConfig, require, require_positive


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(TrainingConfig):
    """How a quantized model is fine-tuned.

    Unlike in section 4.1 of the paper (40 epochs, schedule=step, distillation=0), the
    learning rate follows a cosine and half of the loss is distillation from the float
    model.

    Args:
        model: Float model, a .keras or .h5 file; none: the workdir's
            pretrain/model.keras, or the pruned model that the policy is of.
        policy: A policy file, uniform:WEIGHT_BITS,ACTIVATION_BITS (first layer and
            those of outputs at 8), or random:SEED (needs a budget); none: the workdir's
            search/policy.json.
        rename_layers: How the layers of the policy file are called in the model:
            prefix=TEXT, or a JSON file {old name: new name}.
        other_layers: WEIGHT_BITS,ACTIVATION_BITS of the layers that the policy file
            does not name, where its network is the backbone of the model, as a
            classifier is of a detector; none: the file names all layers.
        drop_layers: With other_layers: layers of the policy file that the model does
            not have; none: a classifier's head_dense.
        name: Folder in the workdir for the results.
        bit_ops_budget: Only with policy=random:SEED: bit operations it may cost, up to
            1 as a fraction of full precision, above 1 as a count.
        budget: Only with policy=random:SEED: what it may cost, instead of
            bit_ops_budget, as in gmpq-search: such as W4A4, 60kB, or both with a comma.
        storage: Only with policy=random:SEED: storage of the .tflite file that a budget
            of bytes is about, as in gmpq-search.
        latency_table: Only with policy=random:SEED: as in gmpq-search.
        weight_bits: Only with policy=random:SEED: candidates of kernels.
        activation_bits: Only with policy=random:SEED: candidates of layer inputs.
        distillation: Share of the loss that compares with the teacher's scores, 0 to 1.
        teacher: Teacher of the distillation, a .keras or .h5 file of the same inputs
            and classes, such as a larger network; none: the float model, for a pruned
            one the whole model.
        temperature: Temperature that softens scores in distillation.
        statistics_images: Augmented training images on which the statistics of each
            BatchNormalization are measured after the last epoch, before biases are
            rounded to multiples of what an integer accumulator counts in; 0: they stay
            as training left them. Those of frozen layers always stay.
        snap_tolerance: Accuracy, 0 to 1, that measuring statistics and rounding biases
            may cost before the stage stops with an error: for boxes mean average
            precision, for tensors the share by which the loss may grow; 1: any cost
            (for tensors: twice the loss).
        calibration_images: Training images that set the first activation ranges.
        kernel_quantizer: How kernels are quantized: lsq, max_abs, apot (2 to 6 bits),
            alq (2 to 7 bits) or rq (drawn in training), best as in the search; none:
            lsq.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int = 30
    schedule: Schedule = "cosine"
    model: str | None = None
    policy: str | None = None
    rename_layers: str | None = None
    other_layers: tuple[int, ...] | None = None
    drop_layers: tuple[str, ...] | None = None
    name: str = "finetune"
    bit_ops_budget: float | None = None
    budget: str | None = None
    storage: str | None = None
    latency_table: str | None = None
    weight_bits: tuple[int, ...] = (2, 3, 4)
    activation_bits: tuple[int, ...] = (2, 3, 4)
    distillation: float = 0.5
    teacher: str | None = None
    temperature: float = 2.0
    statistics_images: int = 2048
    snap_tolerance: float = 0.05
    calibration_images: int = 512
    kernel_quantizer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "distillation", 0 <= self.distillation <= 1, "0 to 1")
        require_positive(self, "temperature")
        if self.teacher is not None:
            rule = "above 0 with a teacher, which nothing would follow"
            require(self, "distillation", self.distillation > 0, rule)
        require(self, "statistics_images", self.statistics_images >= 0, "0 or more")
        require(self, "snap_tolerance", 0 <= self.snap_tolerance <= 1, "0 to 1")
        require(self, "calibration_images", self.calibration_images > 0, "1 or more")
        kernel_method(self.kernel_quantizer or DEFAULT_KERNEL_QUANTIZER)
        check_other_layers(self.other_layers, self.drop_layers)
        if self.policy is not None and self.policy.startswith("random:"):
            require(
                self,
                "bit_ops_budget",
                self.bit_ops_budget is not None or self.budget is not None,
                "given with policy=random:SEED",
            )
        given, what = given_budget(self.budget, self.bit_ops_budget)
        if given is not None and what == "budget":
            parse_budget(given)
        TableOptions(self.storage, self.latency_table)
