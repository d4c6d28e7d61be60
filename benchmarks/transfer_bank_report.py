"""Tables and the figure of `transfer_bank.py`, from its journals.

    python benchmarks/transfer_bank_report.py --shared=SHARED \
        --workdir=runs/transfer_bank --output=results/transfer_bank

Writes bank.json, values.json, summary.json, tables.md and values_against_bank.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest, rankdata
from transfer_bank_network import (
    BUDGETS,
    Bits,
    Images,
    Network,
    drawn,
    key_of,
    mean,
    weights,
)
from transfer_bank_tables import draw_figure, tables
from transfer_bank_values import (
    LETTERS,
    SOURCES,
    TARGETS,
    complete_rounds,
    kinds,
    load,
    searched,
)

from gmpq_tf.search.values import Values, total

RESAMPLES, POLICIES = 2_000, 64
PROXIES = SOURCES[:2]


def main() -> None:
    """Read, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    network = Network(weights(args.shared), Images(np.zeros(0), np.zeros(0, int)))
    measured = read_bank(args.workdir / "bank.jsonl")
    bank = Banked(measured, dict(drawn(network, POLICIES)))
    valued = {
        source: kinds(load(args.workdir, source), network)
        for source in SOURCES
        if complete_rounds(args.workdir, source)
    }
    table = correlations(bank, valued)
    chosen = read_chosen(args.workdir / "chosen.json", measured)
    summary = {
        "bank": bank.summary(),
        "correlations": rows_of(table),
        "differences": differences(table),
        "gaps": gaps(table),
        "chosen": {name: mean(found["right"]) for name, found in chosen.items()},
        "mcnemar": mcnemar(chosen, bank),
        "searched": of_searches(bank, searched(args.workdir)),
        "seconds": seconds(args.workdir),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    write(args.output / "summary.json", summary)
    write(args.output / "bank.json", bank.to_json())
    write(args.output / "values.json", listed(valued))
    (args.output / "tables.md").write_text(tables(summary))
    draw_figure(args.output / "values_against_bank.png", bank, valued)
    print(tables(summary))


def write(path: Path, value: Any) -> None:
    """As JSON, a line for each key."""
    lines = [f"{json.dumps(name)}: {json.dumps(own)}" for name, own in value.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def listed(valued: Mapping[str, Mapping[str, Values]]) -> dict[str, Any]:
    """Source and kind -> layer -> values of its weights, then of its activations."""
    return {
        f"{source} | {kind}": {
            layer: [float(f"{v:.4g}") for side in pair for v in side.values()]
            for layer, pair in values.items()
            if len(pair[0]) > 1
        }
        for source, kinds_of in valued.items()
        for kind, values in kinds_of.items()
        if " + " not in kind
    }


def read_bank(path: Path) -> dict[str, dict[str, Any]]:
    """Policy, as the journal names it -> what it did on every photograph."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        json.dumps(r["key"], sort_keys=True): r["value"] for r in records if "key" in r
    }


def read_chosen(path: Path, measured: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of a choice, "kind | source | budget" -> what its policy did."""
    names = json.loads(path.read_text()) if path.exists() else {}
    keys = {name: json.dumps(bits, sort_keys=True) for name, bits in names.items()}
    return {name: measured[key] for name, key in keys.items() if key in measured}


class Banked:
    """The policies that were measured, by budget.

    Args:
        measured: of `read_bank`.
        names: name -> policy, of all that were to be measured.
    """

    def __init__(
        self, measured: Mapping[str, dict[str, Any]], names: Mapping[str, Bits]
    ) -> None:
        self.float = measured['"float"']
        self.found: dict[str, dict[str, Any]] = {}
        self.bits: dict[str, Bits] = {}
        for name, bits in names.items():
            key = json.dumps(key_of(bits), sort_keys=True)
            if key in measured:
                self.found[name], self.bits[name] = measured[key], bits

    def random(self, budget: str) -> list[str]:
        """Names of the random policies of a budget."""
        return [name for name in self.found if name.startswith(f"random {budget} ")]

    def truth(self, budget: str, target: str) -> np.ndarray:
        """What the random policies of a budget are worth, more is better, [n]."""
        found = [self.found[name] for name in self.random(budget)]
        if target == "top-1":
            return np.array([mean(own["right"]) for own in found])
        return -np.array([np.mean(own["divergence"]) for own in found])

    def summary(self) -> dict[str, Any]:
        """What the bank says of itself."""
        rows: dict[str, Any] = {"float top-1": mean(self.float["right"])}
        for budget in BUDGETS:
            uniform, top1 = self.found[f"uniform {budget}"], self.truth(budget, "top-1")
            halves = [
                [mean(self.found[n]["right"][i::2]) for n in self.random(budget)]
                for i in (0, 1)
            ]
            half = pearson(*(rankdata(own) for own in halves))
            rows[budget] = {
                "random policies": len(top1),
                "top-1 of random": quantiles(top1),
                "top-1 of uniform": mean(uniform["right"]),
                "top-5 of uniform": mean(uniform["top5"]),
                "divergence of random": quantiles(-self.truth(budget, "divergence")),
                "divergence of uniform": float(np.mean(uniform["divergence"])),
                "correlation of top-1 and divergence": pearson(
                    *(rankdata(self.truth(budget, t)) for t in TARGETS)
                ),
                "reliability of top-1": 2 * half / (1 + half),
            }
        return rows

    def to_json(self) -> dict[str, Any]:
        """Every policy: its bits in graph order, top-1, top-5, divergence."""
        return {
            name: {
                "top1": mean(own["right"]),
                "top5": mean(own["top5"]),
                "divergence": float(f"{np.mean(own['divergence']):.5g}"),
                "bits": " ".join(f"{w}/{a}" for w, a in self.bits[name].values()),
            }
            for name, own in self.found.items()
        }


def quantiles(values: np.ndarray) -> list[float]:
    """Least, median, most."""
    return [float(f"{v:.4g}") for v in np.quantile(values, (0, 0.5, 1))]


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two rows; of constant ones 0."""
    return float(correlation(np.atleast_2d(first), np.atleast_2d(second))[0])


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation of each row [r, n] of the first with that of the second, [r]."""
    one = first - first.mean(-1, keepdims=True)
    two = second - second.mean(-1, keepdims=True)
    scale = np.sqrt((one**2).sum(-1) * (two**2).sum(-1))
    product = (one * two).sum(-1)
    return np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)


# (kind, source, budget, target) -> correlations: as measured, and of each resample.
Table = dict[tuple[str, str, str, str], tuple[float, np.ndarray]]


def correlations(bank: Banked, valued: Mapping[str, Mapping[str, Values]]) -> Table:
    """Spearman's, with the same resampled policies for all kinds and sources."""
    found: Table = {}
    for budget in BUDGETS:
        policies = [bank.bits[name] for name in bank.random(budget)]
        count = len(policies)
        picks = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
        for target in TARGETS:
            truth = bank.truth(budget, target)
            ranks = rankdata(truth[picks], axis=-1)
            for source, kinds_of in valued.items():
                for kind, values in kinds_of.items():
                    sums = np.array([total(values, bits) for bits in policies])
                    own = correlation(rankdata(sums[picks], axis=-1), ranks)
                    rho = pearson(rankdata(sums), rankdata(truth))
                    found[kind, source, budget, target] = (rho, own)
    return found


def of_searches(bank: Banked, found: Mapping[str, Values]) -> dict[str, Any]:
    """Correlations of what searches with gradients learned, with their intervals."""
    table = correlations(bank, {"searched": found}) if found else {}
    return {
        f"{kind} | {budget} | {target}": [round(rho, 3), *interval(own)]
        for (kind, _, budget, target), (rho, own) in table.items()
    }


def interval(resampled: np.ndarray) -> list[float]:
    """Of 95 %."""
    return [float(f"{v:.3f}") for v in np.quantile(resampled, (0.025, 0.975))]


def rows_of(table: Table) -> dict[str, Any]:
    """Correlations with their intervals, as plain JSON."""
    return {
        " | ".join(key): [round(rho, 3), *interval(own)]
        for key, (rho, own) in table.items()
    }


def average(
    table: Table, kind: str, target: str, sources: tuple[str, ...] = PROXIES
) -> tuple[float, np.ndarray]:
    """Mean correlation over sources and budgets."""
    keys = [(kind, source, budget, target) for source in sources for budget in BUDGETS]
    cells = [table[key] for key in keys if key in table]
    return float(np.mean([rho for rho, _ in cells])), np.mean(
        [own for _, own in cells], axis=0
    )


def differences(table: Table) -> dict[str, Any]:
    """Correlations less those of A, the mean over proxies and budgets."""
    found = {}
    for target in TARGETS:
        loss, resampled = average(table, "R_E", target)
        for kind in dict.fromkeys(k for k, *_ in table):
            rho, own = average(table, kind, target)
            found[f"{kind} | {target}"] = [
                round(rho - loss, 3),
                *interval(own - resampled),
            ]
    return found


def gaps(table: Table) -> dict[str, Any]:
    """Correlation made on the target less that made on the proxies, by kind."""
    found = {}
    for target in TARGETS:
        for kind in dict.fromkeys(k for k, *_ in table):
            home, at_home = average(table, kind, target, ("target",))
            away, abroad = average(table, kind, target)
            gap = [round(home - away, 3), *interval(at_home - abroad)]
            found[f"{kind} | {target}"] = gap
    return found


def mcnemar(chosen: Mapping[str, dict[str, Any]], bank: Banked) -> list[dict]:
    """Exact tests of pairs of chosen policies, and of each with the uniform one."""
    pairs = [("B", "A"), ("C", "A"), ("D", "A"), ("B", "D")]
    names = {letter: kind for kind, letter in LETTERS.items()}
    rows = []
    for source in SOURCES:
        for budget in BUDGETS:

            def of(letter: str, at: str = f" | {source} | {budget}") -> Any:
                return chosen.get(names[letter] + at)

            compared = [(f"{a} - {b}", of(a), of(b)) for a, b in pairs]
            uniform = bank.found[f"uniform {budget}"]
            compared += [(f"{a} - uniform", of(a), uniform) for a in names]
            for label, first, second in compared:
                if first and second:
                    test = exact(first["right"], second["right"])
                    rows.append({"source": source, "budget": budget, "pair": label,
                                 **test})  # fmt: skip
    return rows


def exact(first: str, second: str) -> dict[str, Any]:
    """McNemar's test of two rows of hits."""
    pairs = list(zip(first, second, strict=True))
    won, lost = pairs.count(("1", "0")), pairs.count(("0", "1"))
    p = binomtest(won, won + lost).pvalue if won + lost else 1.0
    return {"won": won, "lost": lost, "p": float(f"{p:.3g}")}


def seconds(workdir: Path) -> dict[str, Any]:
    """Processor seconds of each journal's measurements, those of tracing among them."""
    found = {}
    for path in sorted(workdir.glob("*.jsonl")):
        values = [json.loads(line).get("value") for line in path.open()]
        times = [v["cpu_seconds"] for v in values if v and "cpu_seconds" in v]
        found[path.stem] = {
            "measurements": len(times),
            "seconds": round(sum(times)),
            "median": float(np.median(times)),
        }
    return found


if __name__ == "__main__":
    main()
