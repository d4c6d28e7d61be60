"""When a weighted graph first has a loop: persistent homology in dimension one."""

from __future__ import annotations

import numpy as np

NEVER = -1


def birth(weights: np.ndarray, steps: int) -> int:
    """The first step at which the clique complex of a graph has a hole, from 1.

    The threshold falls in equal steps from the largest weight to the smallest; an edge
    is there once its weight is at the threshold or above, a triangle with its three
    edges. A hole is a loop that no triangles fill: the first Betti number is not 0.

    Args:
        weights: weights of the edges, symmetric [nodes, nodes]; the diagonal is
            ignored.
        steps: number of steps; the last has all edges, and so no hole.

    Returns:
        1 to steps, or `NEVER`.
    """
    nodes = len(weights)
    rows, columns = np.triu_indices(nodes, 1)
    values = weights[rows, columns]
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return NEVER
    at = np.ceil((high - values) / (high - low) * (steps - 1) - 1e-9).astype(int)
    complex_ = _Complex(nodes)
    order = np.argsort(at, kind="stable")
    edges = [(int(rows[i]), int(columns[i])) for i in order]
    start = 0
    for step, count in enumerate(np.bincount(at, minlength=steps).tolist()):
        if complex_.hole_after(edges[start : start + count]):
            return step + 1
        start += count
    return NEVER


class _Complex:
    """A clique complex without a hole, to which edges are added.

    An edge between two connected components makes no loop. Within a component it makes
    one, which is filled at once if its ends have a common neighbour. Edges of the same
    step may fill each other's loops, so those without a common neighbour wait for the
    others. If some still wait at the end, the Betti number is computed.
    """

    def __init__(self, nodes: int) -> None:
        self.neighbours = [0] * nodes  # a set of nodes as the bits of an integer
        self.parts = list(range(nodes))

    def hole_after(self, edges: list[tuple[int, int]]) -> bool:
        """Adds edges; returns whether there is a hole now."""
        waiting = edges
        while waiting:
            left = [edge for edge in waiting if not self._adds(*edge)]
            if len(left) == len(waiting):
                break
            waiting = left
        if not waiting:
            return False
        for a, b in waiting:
            self._connect(a, b)
        return holes(self.neighbours) > 0

    def _adds(self, a: int, b: int) -> bool:
        one, other = self._part(a), self._part(b)
        if one == other and not self.neighbours[a] & self.neighbours[b]:
            return False
        self.parts[one] = other
        self._connect(a, b)
        return True

    def _connect(self, a: int, b: int) -> None:
        self.neighbours[a] |= 1 << b
        self.neighbours[b] |= 1 << a

    def _part(self, node: int) -> int:
        while self.parts[node] != node:
            self.parts[node] = self.parts[self.parts[node]]
            node = self.parts[node]
        return node


def holes(neighbours: list[int]) -> int:
    """First Betti number of a clique complex, over the integers modulo 2.

    It is the number of edges minus the ranks of the boundary matrices of edges and of
    triangles. First nodes are removed by `folded`, which keeps holes and leaves a small
    graph.

    Args:
        neighbours: neighbours of each node, as the bits of an integer.
    """
    neighbours = folded(neighbours)
    nodes = len(neighbours)
    edges: dict[tuple[int, int], int] = {}
    for a in range(nodes):
        for b in range(a + 1, nodes):
            if neighbours[a] >> b & 1:
                edges[a, b] = len(edges)
    of_edges = [1 << a | 1 << b for a, b in edges]
    of_triangles = [
        1 << own | 1 << edges[a, c] | 1 << edges[b, c]
        for (a, b), own in edges.items()
        for c in range(b + 1, nodes)
        if (neighbours[a] & neighbours[b]) >> c & 1
    ]
    return len(edges) - rank(of_edges) - rank(of_triangles)


def folded(neighbours: list[int]) -> list[int]:
    """Removes nodes whose neighbours are all neighbours of another (strong collapse).

    The clique complex keeps its holes. Removed nodes have no neighbours.

    Args:
        neighbours: neighbours of each node, as the bits of an integer.
    """
    closed = [own | 1 << node for node, own in enumerate(neighbours)]
    alive = (1 << len(neighbours)) - 1
    again = True
    while again:
        again = False
        for node in range(len(neighbours)):
            own = closed[node] & alive
            others = own & ~(1 << node)
            if not alive >> node & 1 or not others:
                continue
            if any(
                others >> other & 1 and not own & ~closed[other]
                for other in range(len(neighbours))
            ):
                alive &= ~(1 << node)
                again = True
    return [
        closed[node] & alive & ~(1 << node) if alive >> node & 1 else 0
        for node in range(len(neighbours))
    ]


def rank(rows: list[int]) -> int:
    """Rank of a matrix over the integers modulo 2; rows are given as integers' bits."""
    leading: dict[int, int] = {}
    for row in rows:
        while row:
            top = row.bit_length()
            if top not in leading:
                leading[top] = row
                break
            row ^= leading[top]
    return len(leading)


def entropy(births: np.ndarray) -> float:
    """Entropy of the histogram of births [n], in nats; 0 where all are the same."""
    _, counts = np.unique(births, return_counts=True)
    shares = counts / counts.sum()
    return float(-np.sum(shares * np.log(shares)))
