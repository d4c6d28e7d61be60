"""How a model is compressed: the options, and what they may be."""

from __future__ import annotations

import dataclasses
from typing import Literal

from gmpq_tf.budget import parse_budget
from gmpq_tf.compression.corrections import AUTO, check_correction
from gmpq_tf.compression.whole import (
    IMAGES,
    LEAST_AGREEMENT,
)
from gmpq_tf.export.command import ExportConfig
from gmpq_tf.export.tflite.exporter import LATENCY_RUNS
from gmpq_tf.search.strategies.loss_delta import LossDeltaConfig
from gmpq_tf.task.kinds import OutputKindName, read_kind
from gmpq_tf.train.recipe import require

STAGE = "compress"


@dataclasses.dataclass(frozen=True)
class CompressConfig:
    """Which model is compressed, and to what budget.

    Args:
        model: Float model, a .keras or .h5 file; none: the workdir's
            pretrain/model.keras.
        images: Folder of images, flat or with one sub-folder a class; none: --dataset.
        budget: What the model may cost: 60kB (of the .tflite file), W4A4, 5%,
            0.5GBOPs, 2.5ms, or several with commas; none: 8 bits in every layer.
        storage: How the .tflite file stores kernels: fast, packed or smallest; none:
            that of the budget (smallest where bytes are budgeted, else fast).
        latency_table: JSON file that gmpq-latency wrote, for a budget of milliseconds.
        weight_bits: Bits that kernels may have; none: those worth measuring for the
            budget.
        activation_bits: Bits that layer inputs may have; none: those worth measuring
            for the budget.
        correction: Correction of the calibrated model: statistics (of
            BatchNormalization, measured again), biases, matched (mean and spread of
            each channel as in the float model), rounding (learned; minutes for large
            models), none, or auto: the one whose outputs are nearest to the float
            model's, or that labels clearly show to be better.
        calibration_images: Training images that ranges and corrections are measured on.
        table_images: Training images that choices are measured on; none: as many as
            take some minutes.
        split: Images that accuracy and agreement are measured on. Nothing is chosen by
            them.
        verify_images: Held-out images on which the file is compared with the Keras
            model before it is kept.
        output_kind: Meaning of the output: classes (the largest score decides), binary
            (each number is a probability, decided at 0.5), binary_logit (decided at 0)
            or, where the data has targets, numbers; none: derived from the model and
            the labels.
        float_layers: Layers without an integer counterpart, such as gelu or attention:
            refuse them, or allow them to be computed in float.
        latency_runs: Timed runs of each storage and of the float model; 0: no timing.
        least_agreement: Share of decisions on which file and Keras model must agree.
        epochs: Fine-tuning epochs (needs labels); 0: none, and corrections instead.

    Raises:
        ValueError: a value is out of range.
    """

    model: str | None = None
    images: str | None = None
    budget: str | None = None
    storage: Literal["fast", "packed", "smallest"] | None = None
    latency_table: str | None = None
    weight_bits: tuple[int, ...] | None = None
    activation_bits: tuple[int, ...] | None = None
    correction: str = AUTO
    calibration_images: int = IMAGES
    table_images: int | None = None
    split: Literal["test", "validation"] = "test"
    verify_images: int = 512
    output_kind: OutputKindName | None = None
    float_layers: Literal["refuse", "allow"] = "refuse"
    latency_runs: int = LATENCY_RUNS
    least_agreement: float = LEAST_AGREEMENT
    epochs: int = 0

    def __post_init__(self) -> None:
        require(self, "calibration_images", self.calibration_images > 0, "1 or more")
        require(self, "epochs", self.epochs >= 0, "0 or more")
        check_correction(self.correction)
        LossDeltaConfig(images=self.table_images)
        if self.output_kind is not None:
            read_kind(self.output_kind)
        self.exported(STAGE)  # refuses what it cannot be
        if self.budget is not None:
            parse_budget(self.budget)

    def exported(self, name: str) -> ExportConfig:
        """Options of the file.

        Args:
            name: the stage whose model is written.
        """
        return ExportConfig(
            name=name,
            storage=self.storage,
            verify_images=self.verify_images,
            output_kind=self.output_kind,
            float_layers=self.float_layers,
            latency_runs=self.latency_runs,
            least_agreement=self.least_agreement,
        )
