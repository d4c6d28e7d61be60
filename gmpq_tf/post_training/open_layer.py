"""A layer of a student while its codes, steps, ranges and biases are learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.graph import infer
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.post_training.bias_correction import move_sums
from gmpq_tf.post_training.rounding import soft_rounding, soft_start
from gmpq_tf.post_training.statistics import scale_kernel
from gmpq_tf.transform.units import Unit

ROWS_A_WEIGHT = 2


@dataclass(frozen=True)
class BlockConfig:
    """How blocks are learned.

    Args:
        steps: steps of Adam for each block.
        rounding: learning rate of kernel codes, in units of V; 0: not learned.
        gain: learning rate of kernel steps, in powers of two; 0: not learned.
        shift: learning rate of biases, in standard deviations of the layer's sums; 0:
            not learned.
        ranges: learning rate of activation ranges, in powers of two; 0: not learned.
        penalty: weight of the penalty on weights between two codes, relative to the
            error at the start.
        drop: share of the activations that stay float during learning, 0 to 1.
        kernels: least number of kernels in a block.
    """

    steps: int = 120
    rounding: float = 2e-2
    gain: float = 1e-3
    shift: float = 3e-3
    ranges: float = 3e-3
    penalty: float = 1.0
    drop: float = 0.0
    kernels: int = 3

    def __post_init__(self) -> None:
        for name in ("steps", "kernels"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be 1 or more. "
                    f"Received: {name}={getattr(self, name)!r}."
                )
        for name in ("rounding", "gain", "shift", "ranges", "penalty"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"{name} must be 0 or more. "
                    f"Received: {name}={getattr(self, name)!r}."
                )
        if not 0 <= self.drop < 1:
            raise ValueError(
                "drop must be a share, 0 or more and below 1. "
                f"Received: drop={self.drop!r}."
            )


class OpenLayer:
    """A layer of the student, with its BatchNormalization, whose numbers are learned.

    Args:
        unit: unit of the student.
        config: what is learned.
        rows: number of outputs of each channel on all images, images times positions.
    """

    def __init__(self, unit: Unit, config: BlockConfig, rows: float) -> None:
        self.unit, self.layer = unit, unit.call.layer
        quantizer, inputs = self.layer.kernel_quantizer, self.layer.input_quantizer
        kernel = np.asarray(self.layer.kernel, "float32")
        self.limit = float(quantizer.largest_code())
        self.steps = np.asarray(quantizer.step(kernel), "float32")
        scaled = kernel * (1 / self.steps)
        self.below = np.floor(scaled)
        rest = np.clip(scaled - self.below, 0, 1)
        self.start: np.ndarray = soft_start(rest).astype("float32")
        self.nearest = quantizer.codes(kernel).astype("float32")
        self.kind = KERNEL_KINDS[self.layer.searchable_kind]
        channels = int(np.prod([kernel.shape[a] for a in self.kind.channel_axes]))
        self.range_start = np.asarray(inputs.log2_range, "float32")
        linear = unit.call.activation == "linear"
        movable = linear and (unit.batch_norm is not None or self.layer.use_bias)
        ranged = inputs.learn_range and not inputs.power_of_two
        # With fewer equations than unknowns the rounding would overfit these images.
        enough = rows * channels >= ROWS_A_WEIGHT * kernel.size
        self.rates = {
            "rounding": config.rounding if enough else 0.0,
            "gain": 0.0 if self.kind.one_step else config.gain,
            "shift": config.shift if movable else 0.0,
            "ranges": config.ranges if ranged and inputs.signed is not None else 0.0,
        }
        shapes = {
            "rounding": kernel.shape,
            "gain": self.steps.shape,
            "shift": (channels,),
            "ranges": self.range_start.shape,
        }
        self.open = {
            name: tf.Variable(tf.zeros(shapes[name]))
            for name, rate in self.rates.items()
            if rate > 0
        }
        self.spread = 1.0  # standard deviation of the sums, set before learning
        self.drop = config.drop

    def part(self, name: str) -> Any:
        """The learned change of "rounding", "gain", "shift" or "ranges", or 0."""
        return tf.convert_to_tensor(self.open[name]) if name in self.open else 0.0

    def up(self) -> tf.Tensor:
        """`h(V)`, how far each weight is rounded up, 0 to 1; of the kernel's shape."""
        return soft_rounding(self.start + self.part("rounding"))

    def codes(self, up: Any) -> tf.Tensor:
        """Codes rounded down plus the share `up` of a step, of the kernel's shape.

        If rounding is not learned these are the nearest codes.
        """
        if "rounding" not in self.open:
            return tf.constant(self.nearest)
        return tf.clip_by_value(self.below + up, -self.limit, self.limit)

    def sums(self, x: tf.Tensor, codes: Any, random: Any = None) -> tf.Tensor:
        """Outputs of the layer and its BatchNormalization for inputs, both [B, ...]."""
        quantizer = self.layer.input_quantizer
        parameters = quantizer.parameters(x)
        if "ranges" in self.open:
            parameters[0] = tf.pow(2.0, self.range_start + self.part("ranges"))
        quantized = quantizer.compute(x, parameters)
        if random is not None and self.drop:
            kept = random.uniform(tf.shape(x)) < self.drop
            quantized = tf.where(kept, x, quantized)
        kernel = codes * self.steps * tf.pow(2.0, self.part("gain"))
        result = self.layer.finish(self.layer.multiply(quantized, kernel), None)
        norm = self.unit.batch_norm
        if norm is not None:
            result = infer(norm, {norm.inputs[0]: result})
        return result + self.part("shift") * self.spread

    def keep(self, codes: np.ndarray) -> None:
        """Writes codes, of the kernel's shape, and what was learned to the student."""
        self.layer.kernel.assign(codes * self.steps)
        norm = self.unit.batch_norm
        if "gain" in self.open:
            gain = np.exp2(np.asarray(self.part("gain"), "float64"))
            scale_kernel(self.layer, gain.reshape(-1))
        if "shift" in self.open:
            shift = np.asarray(self.part("shift"), "float64") * self.spread
            move_sums(self.layer, norm.layer if norm else None, shift)
        if "ranges" in self.open:
            self.layer.input_quantizer.log2_range.assign(
                self.range_start + np.asarray(self.part("ranges"))
            )
