"""The registry of layer kinds with a searched kernel: one row for each kind.

Costs, quantizers, layers, snapping and every export use these rows. To add a kind, add
a row, the class that multiplies (`gmpq_tf.layers.quantized`), and, if it needs a TFLite
operator that no other kind has, the function that writes it
(`gmpq_tf.export.tflite.convolutions`). This module imports neither TensorFlow nor
Keras.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_WINDOW = "kernel_size strides padding dilation_rate use_bias activation"
_PENALTIES = "bias_regularizer bias_constraint"


@dataclass(frozen=True)
class KernelKind:
    """A kind of layer that multiplies by a kernel.

    The axes of kernels are letters: h(eight), w(idth), i(nputs), o(utputs). A depthwise
    kernel has m(ultiples of an input) instead of o; its output channels are the axes i
    and m together. A window with only a width moves along a sequence, which a file
    holds as an image of one row.

    Args:
        name: name of the stock Keras class.
        axes: axes of the kernel in Keras, one letter each.
        stored: axes of the kernel in a TFLite file, one word each: letters in a word
            are merged to one axis, and "1" is an axis of size 1.
        operator: name of the TFLite operator.
        arguments: names of arguments that exist in Keras 3 and tf_keras, with
            attributes of the same names; None: the export through TFMOT refuses the
            kind.
        of_inputs: whether the kernel is applied at every position of the input; else at
            every position of the output.
        one_step: whether all output channels share one step; else each has its own.
        tf_keras_kernel: name of the kernel attribute in tf_keras.
        in_recipes: whether recipes of the LiteRT quantizer support it.
        refuses: (layer, number of input tensors) -> reason why it cannot be computed
            exactly in integers, or None.
    """

    name: str
    axes: str
    stored: str
    operator: str
    arguments: str | None
    of_inputs: bool = False
    one_step: bool = False
    tf_keras_kernel: str = "kernel"
    in_recipes: bool = True
    refuses: Callable[[Any, int], str | None] = lambda layer, tensors: None

    @property
    def depthwise(self) -> bool:
        """Whether each input channel is convolved on its own."""
        return "m" in self.axes

    @property
    def of_lines(self) -> bool:
        """Whether it convolves sequences, [batch, steps, channels], not images."""
        return "w" in self.axes and "h" not in self.axes

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """Axes of the Keras kernel that make up the output channels."""
        letters = "im" if self.depthwise else "o"
        return tuple(self.axes.index(letter) for letter in letters)

    @property
    def weight_axes(self) -> tuple[int, ...]:
        """Axes of the Keras kernel that are not output channels, ascending."""
        kept = self.channel_axes
        return tuple(axis for axis in range(len(self.axes)) if axis not in kept)

    @property
    def shared_axes(self) -> tuple[int, ...]:
        """Axes of the Keras kernel along which weights share one step."""
        return tuple(range(len(self.axes))) if self.one_step else self.weight_axes

    def columns(self, kernel: np.ndarray) -> np.ndarray:
        """A kernel reshaped to [weights per channel, output channels].

        Args:
            kernel: array in the layout of Keras, or one that broadcasts to a kernel.
        """
        order = (*self.weight_axes, *self.channel_axes)
        moved = kernel.transpose(order)
        channels = math.prod(moved.shape[len(self.weight_axes) :])
        return moved.reshape(-1, channels)

    def from_columns(self, columns: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Inverse of `columns`, for a Keras kernel of the given shape."""
        order = (*self.weight_axes, *self.channel_axes)
        moved = columns.reshape([shape[axis] for axis in order])
        return moved.transpose(np.argsort(order))

    def to_file(self, kernel: np.ndarray) -> tuple[np.ndarray, int]:
        """A Keras kernel in TFLite's layout and shape, and its output channel axis."""
        words = self.stored.split()
        order = [self.axes.index(letter) for letter in self._stored_letters()]
        sizes = dict(zip(self.axes, kernel.shape, strict=True))
        shape = [math.prod(sizes.get(c, 1) for c in word) for word in words]
        channels = {self.axes[axis] for axis in self.channel_axes}
        axis = next(n for n, word in enumerate(words) if set(word) == channels)
        return kernel.transpose(order).reshape(shape), axis

    def from_file(self, stored: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Inverse of `to_file`, for a Keras kernel of the given shape."""
        order = [self.axes.index(letter) for letter in self._stored_letters()]
        moved = stored.reshape([shape[axis] for axis in order])
        return moved.transpose(np.argsort(order))

    def _stored_letters(self) -> list[str]:
        return [letter for letter in self.stored if letter in self.axes]


def _transposed(layer: Any, tensors: int) -> str | None:
    """Refuses windows that XNNPACK does not compute: other kernels round twice."""
    if max(layer.dilation_rate) > 1:
        return "with dilation, use an upsampling and a convolution"
    pairs = list(zip(layer.kernel_size, layer.strides, strict=True))
    short = any(size < stride for size, stride in pairs)
    odd = layer.output_padding is not None or any(k > stride for k, stride in pairs)
    if layer.padding == "same" and short and odd:
        return "with a kernel shorter than its stride, use padding='valid'"
    return None


_CONV_ARGUMENTS = (
    f"filters groups {_WINDOW} kernel_regularizer kernel_constraint {_PENALTIES}"
)
_DEPTHWISE_ARGUMENTS = (
    f"depth_multiplier {_WINDOW} depthwise_regularizer depthwise_constraint "
    f"{_PENALTIES}"
)
_KINDS = (
    KernelKind("Conv2D", "hwio", "o h w i", "CONV_2D", _CONV_ARGUMENTS),
    KernelKind("Conv1D", "wio", "o 1 w i", "CONV_2D", _CONV_ARGUMENTS),
    *(
        KernelKind(
            name,
            axes,
            stored,
            "DEPTHWISE_CONV_2D",
            _DEPTHWISE_ARGUMENTS,
            tf_keras_kernel="depthwise_kernel",
        )
        for name, axes, stored in (
            ("DepthwiseConv2D", "hwim", "1 h w im"),
            ("DepthwiseConv1D", "wim", "1 1 w im"),
        )
    ),
    KernelKind(
        "Dense",
        "io",
        "o i",
        "FULLY_CONNECTED",
        f"units use_bias activation kernel_regularizer kernel_constraint {_PENALTIES}",
        one_step=True,
    ),
    *(
        KernelKind(
            name,
            axes,
            stored,
            "TRANSPOSE_CONV",
            None,
            of_inputs=True,
            in_recipes=False,
            refuses=_transposed,
        )
        for name, axes, stored in (
            ("Conv2DTranspose", "hwoi", "o h w i"),
            ("Conv1DTranspose", "woi", "o 1 w i"),
        )
    ),
)
KERNEL_KINDS = {kind.name: kind for kind in _KINDS}
# Kind that is computed as two of these, one after the other -> those two.
SEPARABLE_KINDS = {
    "SeparableConv2D": ("DepthwiseConv2D", "Conv2D"),
    "SeparableConv1D": ("DepthwiseConv1D", "Conv1D"),
}


def listed() -> str:
    """The kinds in words: "Conv2D, DepthwiseConv2D and Dense"."""
    *others, last = KERNEL_KINDS
    return f"{', '.join(others)} and {last}"
