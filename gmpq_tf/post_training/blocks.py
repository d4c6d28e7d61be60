"""Cuts a student's graph into blocks that are learned one after the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from gmpq_tf.graph import Call, Graph, is_searchable
from gmpq_tf.layer_kinds import Role
from gmpq_tf.transform.units import Unit, unit_of

KERNELS, MOST_KERNELS = 3, 6


@dataclass(frozen=True, eq=False)
class Block:
    """Calls of a student that are learned together.

    Args:
        start: index of the first call in the student's graph.
        stop: index after the last call.
        units: the units with kernels, each used once, in order.
        targets: tensor number of the student -> index of the call in the float model's
            graph whose first output it should equal.
    """

    start: int
    stop: int
    units: tuple[Unit, ...]
    targets: dict[int, int]

    @property
    def name(self) -> str:
        """Name of the block's last layer with a kernel."""
        return self.units[-1].call.name


def find_blocks(
    graph: Graph, other: Graph, kernels: int = KERNELS, most: int = MOST_KERNELS
) -> list[Block]:
    """Blocks of at least `kernels` units, cut where only a single tensor is alive.

    Such cuts are after each inverted residual of MobileNetV2, and after each addition
    of a ResNet. If there is none within `most` kernels, the block ends at any unit;
    then several tensors are alive, and each one made in the block has a target. The
    last block ends at the last unit with a kernel, before a softmax.

    Args:
        graph: graph of the student.
        other: graph of its float model, with the same names.
        kernels: least number of kernels in a block, except the last one.
        most: number of kernels after which a block ends at any unit.

    Returns:
        The blocks in the order of the graph.
    """
    together, uses = unit_of(graph), Counter(id(c.layer) for c in graph.calls)
    kernel_calls = [n for n, c in enumerate(graph.calls) if is_searchable(c.layer)]
    if not kernel_calls:
        return []
    last = graph.calls.index(together[id(graph.calls[kernel_calls[-1]])].calls[-1])
    found: list[Block] = []
    start, inside, units = 0, 0, list[Unit]()
    for number, call in enumerate(graph.calls[: last + 1]):
        unit = together[id(call)]
        if call is unit.call and is_searchable(call.layer):
            inside += 1
            if all(uses[id(c.layer)] == 1 for c in unit.calls):
                units.append(unit)
        if number < last:
            if inside < kernels or not _may_end(graph, number, unit):
                continue
            if len(_alive(graph, number)) > 1 and inside < most:
                continue
        if units:
            targets = _targets(graph, other, start, number)
            found.append(Block(start, number + 1, tuple(units), targets))
        start, inside, units = number + 1, 0, []
    return found


def _alive(graph: Graph, number: int) -> set[int]:
    """Numbers of the tensors that exist after a call and are needed later."""
    made = {*graph.inputs}
    made.update(i for call in graph.calls[: number + 1] for i in call.outputs)
    read = {i for call in graph.calls[number + 1 :] for i in call.inputs}
    return made & (read | set(graph.outputs))


def _targets(graph: Graph, other: Graph, start: int, number: int) -> dict[int, int]:
    """Targets of the block of calls `start` to `number`; see `Block`."""
    reference = {call.name: n for n, call in enumerate(other.calls)}
    made = {i for call in graph.calls[start : number + 1] for i in call.outputs}
    anchors = {
        i: _anchor(graph, i, reference) for i in sorted(_alive(graph, number) & made)
    }
    return {i: anchor for i, anchor in anchors.items() if anchor is not None}


def _may_end(graph: Graph, number: int, unit: Unit) -> bool:
    """Whether a block may end here, without cutting a unit or a quantizer's input."""
    if graph.calls[number] is not unit.calls[-1]:
        return False
    following = graph.calls[number + 1]
    result = graph.calls[number].outputs[0]
    return not (following.role is Role.QUANTIZER and result in following.inputs)


def _anchor(graph: Graph, index: int, reference: dict[str, int]) -> int | None:
    """Index of the float model's call that corresponds to a tensor of the student.

    Quantizers, which only the student has, are skipped.
    """
    producers = graph.producers()
    call: Call | None = producers.get(index)
    while call is not None and call.role is Role.QUANTIZER:
        call = producers.get(call.inputs[0])
    return None if call is None else reference.get(call.name)
