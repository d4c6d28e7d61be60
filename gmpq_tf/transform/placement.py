"""Where 8-bit quantizers must sit so that TFLite can store every tensor in int8.

A searchable layer has an input quantizer of its own. Tensors that TFLite stores and no
such quantizer covers get an 8-bit grid here, so that training sees the same rounding as
the integer file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gmpq_tf.graph import (
    Call,
    Graph,
    is_identity,
    is_over_last_axis,
    is_searchable,
)
from gmpq_tf.layer_kinds import Role, function_of
from gmpq_tf.transform.gates import curve, is_gate
from gmpq_tf.transform.signedness import nonnegative_tensors
from gmpq_tf.transform.units import Unit, cap_of, is_fusable_relu, unit_of

PIXELS = ("uint8", "int8")  # integer types that hold quantities, not indices


@dataclass(frozen=True)
class WantedGrid:
    """An 8-bit grid shared by one or more tensors.

    Args:
        name: name of the `InputQuantizer` layer that makes it.
        signed: whether codes may be negative; None: calibration places the zero (for
            model inputs).
        power_of_two: whether the step must be a power of two, because a reader
            requantizes the tensor.
        unit: whether it is the fixed grid of sigmoids, from 0 to 255/256.
    """

    name: str
    signed: bool | None
    power_of_two: bool
    unit: bool = False


@dataclass
class Placement:
    """What `quantize_model` adds to a graph.

    Attributes:
        on_output: tensor number -> grid that the tensor is put on where it is made.
        on_operand: call id -> grid that the call's operands are put on before it reads
            them (concatenation).
        signed: layer name -> signedness of its own input quantizer.
        nested: names of layers whose input is on an 8-bit grid already.
    """

    on_output: dict[int, WantedGrid] = field(default_factory=dict)
    on_operand: dict[int, WantedGrid] = field(default_factory=dict)
    signed: dict[str, bool | None] = field(default_factory=dict)
    nested: set[str] = field(default_factory=set)


def input_signs(graph: Graph) -> dict[str, bool | None]:
    """Signedness of each searchable layer's input: True, False, None for model inputs.

    A layer used several times is signed if one of its inputs may be negative.
    """
    nonnegative, raw = nonnegative_tensors(graph), _raw_inputs(graph)
    signs: dict[str, bool | None] = {}
    for call in graph.calls:
        if is_searchable(call.layer):
            sign = _sign(call.inputs[0], nonnegative, raw)
            seen = signs.get(call.name, sign)
            signs[call.name] = sign if seen == sign else True
    return signs


def place_quantizers(graph: Graph) -> Placement:
    """Decides which tensors get an 8-bit grid of their own, and which nest.

    A tensor needs one when TFLite stores it, unless its only reader is a searchable
    layer, whose own input quantizer then is the grid. That concerns operands and
    results of additions and concatenations, inputs of average pools, tensors with
    several readers, and outputs.
    """
    placement = Placement(signed=input_signs(graph))
    nonnegative, raw = nonnegative_tensors(graph), _raw_inputs(graph)
    producers, consumers = graph.producers(), graph.consumers()
    # `grids` has the grid of every tensor that is on one, also where it is inherited;
    # tensors are visited in graph order, so that of the source is known.
    together, grids = unit_of(graph), dict[int, WantedGrid]()
    for index in _tensors_in_order(graph):
        producer, readers = producers.get(index), consumers[index]
        source = grids.get(producer.inputs[0]) if producer and producer.inputs else None
        # First the tensors whose grid follows from their producer. The result of a
        # concatenation is on the grid of its operands; reshapes, max pools and the like
        # keep the grid of their input; local average pools and ReLUs round their result
        # to that grid once more, as their int8 kernels do.
        if producer is not None and producer.role is Role.JOIN:
            grids[index] = placement.on_operand[id(producer)]
        elif producer is not None and keeps_grid(producer) and source:
            grids[index] = source
        elif producer is not None and source and _keeps_steps(graph, producer):
            grids[index] = placement.on_output[index] = source
        elif _is_stored(graph, index, producer, readers, together):
            sign = _sign(index, nonnegative, raw)
            nests = any(_requantizes(graph, c, consumers) for c in readers)
            # Bilinear weights are sixteenths, so results may lie midway between two
            # codes, and must be rounded alike whoever reads them.
            nests |= producer is not None and producer.role is Role.BLEND
            name = _grid_name(graph, index, producer)
            unit = producer is not None and is_gate(producer)
            grid = WantedGrid(name, sign, nests or unit, unit)
            grids[index] = placement.on_output[index] = grid
        # All operands of a concatenation must be on one grid, wide enough for each. It
        # is put on them as this call reads them; other readers see their own grids.
        for call in readers:
            if call.row.shares_grid and id(call) not in placement.on_operand:
                signed = not all(i in nonnegative for i in call.inputs)
                placement.on_operand[id(call)] = WantedGrid(
                    f"{call.name}_quantizer", signed, True
                )
    # These layers requantize their input from the stored grid to their own, which is
    # exact only where both steps are powers of two.
    placement.nested = {
        call.name
        for call in graph.calls
        if is_searchable(call.layer) and call.inputs[0] in grids
    }
    return placement


def is_transparent(call: Call) -> bool:
    """Whether a call only moves values, so that it commutes with quantization."""
    return is_identity(call) or call.role is Role.MOVE


def is_local_pool(graph: Graph, call: Call) -> bool:
    """Whether a call is average pooling whose int8 kernel keeps its input's grid.

    One window over the whole image is lowered to a mean, which may change the grid.
    """
    if call.role is not Role.POOL or not hasattr(call.layer, "pool_size"):
        return False
    image, windows = (graph.shapes[i][1:-1] for i in (call.inputs[0], call.outputs[0]))
    return tuple(call.layer.pool_size) != tuple(image) or set(windows) != {1}


def _keeps_steps(graph: Graph, call: Call) -> bool:
    """Whether a call's integer kernel rounds its result to the grid of its input.

    A ReLU does so too: its largest value, such as 6, need not be on the grid.
    """
    return is_local_pool(graph, call) or is_fusable_relu(call)


def _is_stored(
    graph: Graph,
    index: int,
    producer: Call | None,
    readers: list[Call],
    together: dict[int, Unit],
) -> bool:
    if _holds_indices(graph, index, readers):
        return False
    if producer is not None and is_gate(producer):
        return not is_final(graph, producer, readers)
    between = producer is not None and producer.role is Role.HOST
    if between and all(reader.role is Role.HOST for reader in readers):
        return False  # float, unless it enters a file
    if index in graph.outputs:
        return producer is None or not is_final(graph, producer, readers)
    if len(readers) != 1:
        return len(readers) > 1
    reader = readers[0]
    if producer is not None and together[id(producer)] is together[id(reader)]:
        return False
    own = is_searchable(reader.layer) or reader.row.shares_grid
    return not own and not is_transparent(reader)


def _holds_indices(graph: Graph, index: int, readers: list[Call]) -> bool:
    """Whether a tensor holds indices or a mask, which must not be quantized.

    Indices are, for instance, the tokens that an Embedding looks up.
    """
    if graph.dtypes[index] == "bool" and index not in graph.inputs:
        return True
    if any(reader.row.of_indices for reader in readers):
        return True
    kind = graph.dtypes[index]
    if index in graph.inputs or kind in PIXELS or "float" in kind:
        return False  # integers that are model inputs may be pixels
    looked_up = [r for r in readers if r.role is Role.FLOAT and not r.row.whole]
    moved = [r for r in readers if is_transparent(r) or r.row.whole]
    used = bool(looked_up) or index in graph.outputs
    return used and len(looked_up) + len(moved) == len(readers)


def _grid_name(graph: Graph, index: int, producer: Call | None) -> str:
    """Name of the quantizer layer of a tensor, unique in the model."""
    if producer is None:
        return f"{graph.input_names[graph.inputs.index(index)]}_quantizer"
    made = [c.outputs for c in graph.calls if c.layer is producer.layer]
    number = [i for outputs in made for i in outputs].index(index)
    return f"{producer.name}_quantizer" + (f"_{number}" if number else "")


def is_final(graph: Graph, call: Call, readers: list[Call]) -> bool:
    """Whether a call is the softmax or sigmoid that ends a model.

    It is a call of its own after `split_activations`, and its result needs no grid. A
    softmax must be over the last axis, without a mask, as that of TFLite is.
    """
    if readers or call.outputs[0] not in graph.outputs or is_searchable(call.layer):
        return False
    if len(call.inputs) > 1 or not is_over_last_axis(
        call.layer, len(graph.shapes[call.outputs[0]])
    ):
        return False
    return function_of(curve(call) or call.activation).ends


def keeps_grid(call: Call) -> bool:
    """Whether the result of a call is on the grid of its input, without rounding.

    (The input of a ReLU that is fused into the previous call has no grid to keep.)
    """
    if call.role is Role.REPEAT:
        return call.row.refuses(call.layer, 1) is None
    if is_fusable_relu(call):
        return cap_of(call) is None
    return is_transparent(call)


def _requantizes(graph: Graph, call: Call, consumers: dict[int, list[Call]]) -> bool:
    """Whether a reader needs a step that is a power of two.

    True for readers that put the tensor on another grid; for local average pools, where
    float32 and int8 round ties alike only if the step is a power of two; and for hard
    sigmoids, whose offset is then a whole number of units of the accumulator.
    """
    if curve(call) == "hard_sigmoid":
        return True
    if is_searchable(call.layer) or call.row.shares_grid:
        return True
    if is_local_pool(graph, call) or call.role is Role.BLEND:
        return True
    if keeps_grid(call) or is_fusable_relu(call):
        return any(
            _requantizes(graph, c, consumers)
            for i in call.outputs
            for c in consumers[i]
        )
    return False


def _sign(index: int, nonnegative: set[int], raw: set[int]) -> bool | None:
    if index in nonnegative:
        return False
    return None if index in raw else True


def _raw_inputs(graph: Graph) -> set[int]:
    """Model inputs, and tensors made of them by moving or rescaling values alone."""
    raw = set(graph.inputs)
    for call in graph.calls:
        moves = is_transparent(call) or call.row.of_images
        if moves and call.inputs and call.inputs[0] in raw:
            raw.update(call.outputs)
    return raw


def _tensors_in_order(graph: Graph) -> list[int]:
    return graph.inputs + [index for call in graph.calls for index in call.outputs]
