"""Values of choices from what `transfer_bank.py` measured, and what they choose."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transfer_bank_network import BUDGETS, CROP, Bits, Network

from gmpq_tf.attribution import rank_distance, resize_maps
from gmpq_tf.search.choose import choose
from gmpq_tf.search.values import Values

TOP_K, TOP_RANKS, TOP_NATIVE = 1000, 100, 10
FIXED = (1, 2, 3, 4)  # p of Fig. 5
ETAS = (1, 10, 100, 1_000, 10_000, 100_000)
CHANGES = 2 + 51 * 2 * 3  # lines of a round: float, 8 bits, each tensor at 4, 5, 6
WEIGHT_CAPACITY, ACTIVATION_CAPACITY = 4, 6  # of eq. 8
SOURCES = ("flowers17", "cifar10", "target")
TARGETS = ("top-1", "divergence")  # what the bank says of a policy
# Kinds of value by the names of the question.
LETTERS = {
    "R_E": "A",
    "R_G, p of eq. 8": "B",
    "R_E + 100 R_G": "C",
    "divergence": "D",
}
# Kinds whose choices are measured on the bank's photographs.
MEASURED = (
    *LETTERS,
    "divergence of the proxy's classes",
    "R_G, p = 2",
    "R_E + 1000 R_G",
    "rank distance",
)
# Change of one tensor, such as "conv W4" -> a risk of each image [n]; "": none.
Column = dict[str, np.ndarray]


def load(workdir: Path, source: str, rounds: int | None = None) -> dict[str, Column]:
    """Columns of all risks that were measured on a source.

    Args:
        workdir: of `transfer_bank.py`.
        source: of `SOURCES`.
        rounds: how many parts of the images; None: those that are complete.
    """
    complete = complete_rounds(workdir, source)[:rounds]
    parts = [columns_of(part) for part in complete]
    return {
        name: {
            change: np.concatenate([part[name][change] for part in parts])
            for change in parts[0][name]
        }
        for name in parts[0]
    }


def complete_rounds(workdir: Path, source: str) -> list[dict[str, Any]]:
    """What was measured of every change on the same images, by those images."""
    records: dict[int, dict[str, Any]] = {}
    path = workdir / f"values_{source}.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        if "key" in record:
            change, number = record["key"]
            records.setdefault(number, {})[change] = record["value"]
    return [part for _, part in sorted(records.items()) if len(part) == CHANGES]


def columns_of(records: Mapping[str, Any]) -> dict[str, Column]:
    """Columns of one part of the images.

    Args:
        records: change -> what was measured; "float" are the float network's maps.
    """
    changes = [change for change in records if change != "float"]
    layers = len({change.rsplit(" ", 1)[0] for change in changes if change}) + 2

    def risk(head: str, name: str) -> Column:
        return {c: np.array(records[c][head][name]) for c in changes}

    columns = {
        "R_E": risk("own", "task"),
        "divergence": risk("imagenet", "divergence"),
        "divergence of the proxy's classes": risk("own", "divergence"),
    }
    for head, suffix in (("own", ""), ("imagenet", " of the predicted class")):
        guide = Guide(square(records["float"][head]["maps"]))
        maps = {c: square(records[c][head]["maps"]) for c in changes}
        for name, column in guide.columns(maps, layers).items():
            own, _, rest = name.partition(",")
            columns[f"{own}{suffix}{',' if rest else ''}{rest}"] = column
    return columns


class Guide:
    """How far maps are from those of the float network.

    Args:
        teacher: its maps, [n, h, w].
    """

    def __init__(self, teacher: np.ndarray) -> None:
        self.native = teacher
        self.teacher = flat(teacher)
        self.pixels = np.argsort(-self.teacher, -1, kind="stable")[:, :TOP_K]
        self._targets: dict[float, np.ndarray] = {}

    def columns(self, maps: Mapping[str, np.ndarray], layers: int) -> dict[str, Column]:
        """`R_G` with every p, and rank distances.

        Args:
            maps: change -> [n, h, w].
            layers: L of eq. 8.
        """
        found: dict[str, Column] = {f"R_G, p = {p}": {} for p in FIXED}
        found |= {"R_G, p of eq. 8": {}, "rank distance": {}, "rank distance, 7x7": {}}
        for change, own in maps.items():
            student = flat(own)
            for p in FIXED:
                found[f"R_G, p = {p}"][change] = self.gap(student, p)
            p8 = exponent(change, layers)
            found["R_G, p of eq. 8"][change] = self.gap(student, p8)
            found["rank distance"][change] = self.ranks(student)
            found["rank distance, 7x7"][change] = np.asarray(
                rank_distance(own, self.native, TOP_NATIVE)
            )
        return found

    def gap(self, student: np.ndarray, p: float) -> np.ndarray:
        """`sum (M_q - M_f^p / sum M_f^p)^2` over the teacher's first pixels, [n].

        As `gmpq_tf.attribution.generalization_risk` of each image, with targets kept.
        """
        if p not in self._targets:
            self._targets[p] = np.take_along_axis(
                shares(self.teacher**p), self.pixels, -1
            )
        own = np.take_along_axis(shares(student), self.pixels, -1)
        target = self._targets[p]
        seen = self.teacher.sum(-1) > 0
        return np.square(own - target).sum(-1) * seen

    def ranks(self, student: np.ndarray) -> np.ndarray:
        """Mean difference of the ranks of the teacher's 100 first pixels, [n].

        Unlike in `gmpq_tf.attribution.rank_distance` equal pixels share their mean
        rank, so that one sort a map is enough.
        """
        gaps = [
            np.abs(mean_ranks(own, pixels) - mean_ranks(teacher, pixels)).mean()
            for own, teacher, pixels in zip(
                student, self.teacher, self.pixels[:, :TOP_RANKS], strict=True
            )
        ]
        return np.array(gaps)


def mean_ranks(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Ranks of the values at some places among all, 1 for the largest."""
    ascending = np.sort(values)
    low = np.searchsorted(ascending, values[places], "left")
    high = np.searchsorted(ascending, values[places], "right")
    return len(values) - (low + high - 1) / 2


def exponent(change: str, layers: int) -> float:
    """Exponent of eq. 8 where one tensor has the bits of a change and all others 8."""
    width = int(change.rsplit(" ", 1)[1][1:]) if change else 8
    capacity = WEIGHT_CAPACITY * ACTIVATION_CAPACITY
    return capacity * ((layers - 1) / 64 + 1 / (8 * width)) / layers


def square(maps: list[float]) -> np.ndarray:
    """Maps of 7 x 7, [n, 7, 7]."""
    return np.array(maps, "float32").reshape(-1, 7, 7)


def flat(maps: np.ndarray) -> np.ndarray:
    """At the size of the input, [n, pixels]."""
    return np.asarray(resize_maps(maps, CROP, CROP)).reshape(len(maps), -1)


def shares(maps: np.ndarray) -> np.ndarray:
    """Each row over its sum; a row of zeros stays."""
    total = maps.sum(-1, keepdims=True)
    return np.divide(maps, total, out=np.zeros_like(maps), where=total > 0)


def kinds(columns: Mapping[str, Column], network: Network) -> dict[str, Values]:
    """Kind -> values of every choice, more is better.

    Args:
        columns: of `load`.
        network: whose candidates they are.
    """
    found = dict(columns)
    for loss, gap in (
        ("R_E", "R_G, p of eq. 8"),
        ("divergence", "R_G of the predicted class, p = 1"),
    ):
        for eta in ETAS:
            name = f"{loss} + {eta} R_G"
            found[name] = {
                change: columns[loss][change] + eta * columns[gap][change]
                for change in columns[loss]
            }
    return {name: values_of(column, network) for name, column in found.items()}


def values_of(column: Column, network: Network) -> Values:
    """Minus what each choice adds, at most 0 and never more with fewer bits."""
    values: dict[str, Any] = {}
    for name, pair in network.candidates.items():
        sides: list[dict[int, float]] = []
        for letter, widths in zip("WA", pair, strict=True):
            worst, side = 0.0, {}
            for width in sorted(widths, reverse=True):
                change = f"{name} {letter}{width}"
                if change in column:
                    worst = min(worst, float((column[""] - column[change]).mean()))
                side[width] = worst
            sides.append(side)
        values[name] = (sides[0], sides[1])
    return values


def searched(workdir: Path) -> dict[str, Values]:
    """Values that searches with gradients ended at, by "strategy, readout | source"."""
    path = workdir / "searches.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return {
        f"{strategy}, {readout} | {source}": {
            layer: tuple(
                {int(bits): value for bits, value in pair[side].items()}
                for side in ("weights", "activations")
            )  # type: ignore[misc]
            for layer, pair in values.items()
        }
        for name, result in found.items()
        for strategy, source in [name.split(" | ")]
        for readout, values in result["values"].items()
    }


def _chosen(values: Values, problem: Any) -> Bits:
    """The best policy that spends the budget: all kinds at the same cost."""
    return choose(values, problem.candidates, problem.limits, spends=True)


def chosen_policies(workdir: Path, network: Network) -> Iterator[tuple[str, Bits]]:
    """The policies that the kinds of value choose, by "kind | source | budget"."""
    problems = {budget: network.problem(budget) for budget in BUDGETS}
    valued = {
        source: kinds(load(workdir, source), network)
        for source in SOURCES
        if complete_rounds(workdir, source)
    }
    for kind in MEASURED:
        for source, values in valued.items():
            for budget, problem in problems.items():
                bits = _chosen(values[kind], problem)
                yield f"{kind} | {source} | {budget}", bits
    for name, values in searched(workdir).items():
        for budget, problem in problems.items():
            bits = _chosen(values, problem)
            yield f"{name} | {budget}", bits
