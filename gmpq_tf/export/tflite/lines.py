"""Layers on sequences, [batch, steps, channels], computed on images of one row.

TFLite has convolutions and pools over images only. A sequence ("line") is kept as an
image [batch, 1, steps, channels] from one such layer to the next, also through sums,
activations and the like in between. It is reshaped back where a layer needs a sequence,
or the model ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from gmpq_tf.export.tflite.integer_graph import IntegerGraph, image_shape
from gmpq_tf.graph import Call, Graph
from gmpq_tf.layer_kinds import Role
from gmpq_tf.transform.units import Unit

# Roles that compute the same for any shape, so that no reshape is needed.
ANYWHERE = (
    *(Role.NORM, Role.SCALING, Role.SUM, Role.PRODUCT, Role.JOIN, Role.MEAN),
    *(Role.IDENTITY, Role.CURVE, Role.LOOKUP, Role.QUANTIZER),
)
SIZES = ("kernel_size", "strides", "dilation_rate", "pool_size", "size")
MARGINS = ("padding", "cropping")  # as numbers, not as words such as "same"


@dataclass(frozen=True)
class OnImages:
    """A layer on sequences, seen as one on images whose windows are one row high.

    Args:
        layer: the layer on sequences; all other attributes are taken from it.
        graph_kind: kind of the layer on images.
    """

    layer: Any
    graph_kind: str
    interpolation: ClassVar[str] = "nearest"  # the only one for sequences

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.layer, name)
        if name in SIZES:
            return (1, *(value if isinstance(value, tuple) else (value,)))
        if name in MARGINS and not isinstance(value, str):
            return ((0, 0), tuple(value))
        if name == "axis" and isinstance(value, int) and value > 0:
            return value + 1
        return value


def is_on_image(net: IntegerGraph, call: Call) -> bool:
    """Whether a call on sequences is computed on images of one row."""
    if call.row.images is not None:
        return True
    lines = all(len(net.graph.shapes[i]) == 3 for i in (*call.inputs, *call.outputs))
    made = any(i in net.images for i in call.inputs)
    # Scaling is written as a convolution, which needs images in any case.
    scales = call.role in (Role.NORM, Role.SCALING)
    return lines and (scales or (made and call.role in ANYWHERE))


def on_image(
    net: IntegerGraph, call: Call, lower: Callable[[IntegerGraph, Call], None]
) -> None:
    """Writes a layer on sequences, and what is fused into it, as one on images.

    Args:
        net: the file being written.
        call: a call that reads and writes [batch, steps, channels], or [batch,
            channels].
        lower: writes a call on images.
    """
    unit = net.unit(call)
    sources = tuple(net.as_image(call, i) for i in range(len(call.inputs)))
    middle = net.stand_in(unit.result, image_shape(net.graph.shapes[unit.result]))
    inner = replace(with_images(call), inputs=sources, outputs=(middle,))
    net.join(_unit_on_image(unit, inner, middle))
    net.done.update(id(member) for member in unit.calls)
    start = len(net.checks)
    lower(net, inner)
    net.checks[start:] = [
        replace(
            check,
            index=net.stands_for.get(check.index, check.index),
            reader=call if check.reader is inner else check.reader,
        )
        for check in net.checks[start:]
    ]
    net.images[unit.result] = middle


def with_images(call: Call) -> Call:
    """The call of the corresponding layer on images; other calls unchanged."""
    if call.row.images is None and call.role is not Role.JOIN:
        return call
    return replace(call, layer=OnImages(call.layer, call.row.images or call.kind))


def image_window(graph: Graph, call: Call) -> tuple[Any, tuple, tuple]:
    """A convolution as one on images, and the shapes of its input and output."""
    shapes = (graph.shapes[i] for i in (call.inputs[0], call.outputs[0]))
    if call.row.images is None:
        return (call.layer, *shapes)
    return (with_images(call).layer, *map(image_shape, shapes))


def _unit_on_image(unit: Unit, inner: Call, middle: int) -> Unit:
    """The unit of `inner`, whose last call writes the image `middle`."""
    parts = [unit.batch_norm, unit.activation]
    if unit.activation is not None:
        parts[1] = replace(unit.activation, outputs=(middle,))
    elif unit.batch_norm is not None:
        parts[0] = replace(unit.batch_norm, outputs=(middle,))
    return Unit(inner, *parts)
