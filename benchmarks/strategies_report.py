"""Tables and the figure of results/strategies, from what was recorded.

    python benchmarks/strategies_report.py --results=results

Reads the banks, the values of every strategy and what they cost, and writes the blocks
between `<!-- NAME -->` and `<!-- end -->` of results/strategies/README.md, and
search_cost.svg beside it. No number of theirs is typed by hand.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from policy_bank_scores import WHOLE, correlation, random_runs, read_bank, score
from scipy import stats

# Strategy -> the kind of results/policy_bank/values that it makes by its defaults, but
# for epochs.
RESNET8 = {
    "loss_delta": "table",
    "fisher": "fisher",
    "hawq": "hawq",
    "clado": "clado",
    "ompq": "ompq",
    "topological_entropy": "topological_entropy",
    "one_shot": "one_shot",
    "limpq": "limpq",
    "edmips": "edmips",
    "gmpq": "gmpq_mean_bits",
    "bp_nas": "bp_nas",
    "hmq": "hmq",
    "dq": "dq",
    "fracbits": "fracbits",
    "ssps": "ssps",
    "bayesian_bits": "bayesian_bits",
    "sdq": "sdq",
    "djpq": "djpq",
    "random": "random",
    "random --steps=40": "random_halving",
    "evolution": "evolution",
    "haq": "haq",
}
METHODS = ("lsq", "apot", "alq", "rq")
BUDGETS = ("W5A5", "W6A6")
# Strategies that `transfer_bank_strategies.py` runs; another study has loss_delta.
PHOTOGRAPHED = ("fisher", "hawq", "clado", "ompq", "topological_entropy", *WHOLE[:2])
PHOTOGRAPHS = 32  # that each choice of the table was measured on
TABLES = ("loss_delta", "fisher", "hawq", "clado", "ompq", "topological_entropy")
UNIFORM = "uniform3"
Row = Sequence[str]


def main() -> None:
    """Read, compute, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True, help="the folder")
    args = parser.parse_args()
    folder = args.results / "strategies"
    found = resnet8(args.results)
    blocks = {
        "resnet8": resnet8_table(found, memory(folder)),
        "mobilenet_v2": mobilenet_table(args.results),
        "quantizers": quantizers_table(folder / "quantizers.jsonl"),
        "published": published_table(folder / "published.json"),
        "missing": missing(args.results, found),
    }
    page = folder / "README.md"
    page.write_text(filled(page.read_text(), blocks))
    draw(found, folder / "search_cost.svg")


def filled(text: str, blocks: dict[str, str]) -> str:
    """A page with its blocks replaced.

    Raises:
        ValueError: the page has no place for one.
    """
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"There must be a block. Received: {name!r}.")
        text = pattern.sub(lambda m, b=block: f"{m[1]}{b}{m[2]}", text)
    return text


def table(head: Row, rows: Iterable[Row]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file, none without it."""
    return (
        [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    )


def memory(folder: Path) -> dict[str, float]:
    """Strategy -> peak memory over that of float training."""
    rows = read_lines(folder / "memory.jsonl")
    return {row["strategy"]: row["over_float"] for row in rows}


def resnet8(results: Path) -> list[dict[str, Any]]:
    """Of each strategy what the bank says of its values and its policy.

    Returns:
        strategy, steps, seconds, values (rho, low, high, or None), policy and `above`
        (points above uniform of each seed a bank has of the policy).
    """
    runs = read_bank(results / "policy_bank/jax/bank.jsonl")
    drawn = random_runs(runs)
    banks = [(runs, UNIFORM)]
    own = results / "policy_bank/resnet8_2-4.jsonl"
    banks.append(([r for r in read_lines(own) if r["epochs"] == 2], "uniform"))
    found = []
    for strategy, kind in RESNET8.items():
        path = results / "policy_bank/values" / f"{kind}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text())
        pairs = record.get("pairs", ())
        rho = None
        if record["strategy"] not in WHOLE:
            scores = [score(record["values"], r["bits"], 1.0, pairs) for r in drawn]
            rho = correlation(scores, [r["test"] for r in drawn])
        above = [
            gap for bank, name in banks for gap in gaps(bank, name, record["policy"])
        ]
        found.append(
            {
                "strategy": strategy,
                "steps": record["cost"]["float_steps"],
                "seconds": record.get("cpu_seconds", record["cost"]["seconds"]),
                "values": rho,
                "policy": record["policy"],
                "above": [100 * gap for gap in above],
            }
        )
    return found


def gaps(
    runs: Sequence[dict[str, Any]], name: str, policy: dict[str, list[int]]
) -> list[float]:
    """Accuracy of a policy minus that of uniform bits, for each seed of both.

    Args:
        runs: of one program.
        name: what it calls uniform bits.
        policy: bits of each layer.
    """
    uniform = {r["seed"]: r["test"] for r in runs if r["policy"] == name}
    return list(
        {
            r["seed"]: r["test"] - uniform[r["seed"]]
            for r in runs
            if r["bits"] == policy and r["seed"] in uniform
        }.values()
    )


def resnet8_table(found: list[dict[str, Any]], memory: dict[str, float]) -> str:
    """Strategies by rank correlation, those without values last."""
    order = sorted(found, key=lambda row: -(row["values"] or {"rho": -2})["rho"])
    uniform = uniform_bits(found[0]["policy"])
    rows = []
    for row in order:
        rho, above = row["values"], row["above"]
        said = (
            f"{rho['rho']:.2f} ({rho['low']:.2f} to {rho['high']:.2f})" if rho else ""
        )
        gain = f"{np.mean(above):+.2f} ({len(above)})" if above else ""
        peak = memory.get(row["strategy"])
        rows.append(
            [
                f"`{row['strategy']}`",
                said,
                f"{row['steps']:.0f}",
                f"{row['seconds']:.0f}",
                f"{peak:.2f}" if peak else "",
                bits_text(row["policy"]),
                f"{agreement(row['policy'], uniform)} of {2 * (len(uniform) - 2)}",
                gain,
            ]
        )
    head = (
        "strategy", "rank correlation", "float steps", "seconds", "memory",
        "policy: weights, activations", "as uniform", "above uniform",
    )  # fmt: skip
    return table(head, rows)


def missing(results: Path, found: list[dict[str, Any]]) -> str:
    """What the commands would still record: they go on with it."""
    folder = results / "strategies"
    valued = {row["strategy"] for row in found}
    photographed = {path.stem for path in (folder / "mobilenet_v2").glob("*.json")}
    trained = {
        (r["method"], r["bits"]) for r in read_lines(folder / "quantizers.jsonl")
    }
    absent = {
        "Values on ResNet-8": [n for n in RESNET8 if n not in valued],
        "Memory": [n for n in RESNET8 if n.split()[0] not in memory(folder)],
        "Values on MobileNetV2": [n for n in PHOTOGRAPHED if n not in photographed],
        "Quantizers": [
            f"{method} at W{bits}A{bits}"
            for bits in (3, 2)
            for method in METHODS
            if (method, bits) not in trained
        ],
    }
    return "".join(
        f"* {what} of {', '.join(names)}.\n" for what, names in absent.items() if names
    )


def uniform_bits(policy: dict[str, list[int]]) -> dict[str, list[int]]:
    """W3A3, the ends as they are."""
    ends = (next(iter(policy)), next(reversed(policy)))
    return {name: own if name in ends else [3, 3] for name, own in policy.items()}


def bits_text(policy: dict[str, list[int]]) -> str:
    """Bits of the layers between the ends: of their weights, then of their inputs."""
    inner = list(policy.values())[1:-1]
    return ", ".join("".join(str(own[side]) for own in inner) for side in (0, 1))


def agreement(policy: dict[str, list[int]], other: dict[str, list[int]]) -> int:
    """How many choices between the ends are the same."""
    inner = list(policy)[1:-1]
    return sum(policy[n][s] == other[n][s] for n in inner for s in (0, 1))


def mobilenet_table(results: Path) -> str:
    """What each strategy says of MobileNetV2's bank, and what it chose does."""
    bank = json.loads((results / "transfer_bank/bank.json").read_text())
    names: list[str] = []
    rows, ranked = [], []
    for path in sorted((results / "strategies/mobilenet_v2").glob("*.json")):
        record = json.loads(path.read_text())
        names = list(record["values"])
        cells = []
        for budget in BUDGETS:
            drawn = [v for k, v in bank.items() if k.startswith(f"random {budget}")]
            if path.stem in WHOLE:
                cells.append(("", record["chosen"][budget]["top1"]))
                continue
            pairs = record.get("pairs", ())
            scores = [
                score(record["values"], read_bits(v["bits"], names), 1.0, pairs)
                for v in drawn
            ]
            rho = correlation(scores, [v["top1"] for v in drawn])
            said = f"{rho['rho']:.2f} ({rho['low']:.2f} to {rho['high']:.2f})"
            cells.append((said, record["chosen"][budget]["top1"]))
        costs = record["costs"].values()
        steps = sum(c["float_steps"] for c in costs)
        seconds = sum(c.get("cpu_seconds", c["seconds"]) for c in costs)
        ranked.append((-cells[0][1], path.stem, cells, steps, seconds))
    ranked.append(measured_before(results))
    for _, name, cells, steps, seconds in sorted(ranked):
        (first, low), (second, high) = cells
        rows.append(
            [f"`{name}`", first, second, f"{100 * low:.1f}", f"{100 * high:.1f}",
             f"{steps:.1f}", f"{seconds:.0f}"]
        )  # fmt: skip
    tops = [100 * bank[f"uniform {budget}"]["top1"] for budget in BUDGETS]
    rows.append(["uniform", "", "", *(f"{top:.1f}" for top in tops), "0", "0"])
    drawn_tops = [
        [100 * v["top1"] for k, v in bank.items() if k.startswith(f"random {budget}")]
        for budget in BUDGETS
    ]
    rows.append(
        ["random, mean of 64", "", "", *(f"{np.mean(t):.1f}" for t in drawn_tops),
         "0", "0"]
    )  # fmt: skip
    head = (
        "strategy", *(f"rank correlation, {budget}" for budget in BUDGETS),
        *(f"top-1, {budget}" for budget in BUDGETS), "float steps", "seconds",
    )  # fmt: skip
    return table(head, rows)


def measured_before(
    results: Path,
) -> tuple[float, str, list[tuple[str, float]], float, float]:
    """`loss_delta`, which `transfer_bank.py` measured: its divergence on the target."""
    record = json.loads((results / "transfer_bank/summary.json").read_text())
    cells = []
    for budget in BUDGETS:
        name = f"divergence | target | {budget}"
        rho, low, high = record["correlations"][f"{name} | top-1"]
        said = f"{rho:.2f} ({low:.2f} to {high:.2f})"
        cells.append((said, dict(record["chosen"])[name]))
    spent = record["seconds"]["values_target"]
    steps = spent["measurements"] * PHOTOGRAPHS / 3 / 128  # as a search counts them
    return -cells[0][1], "loss_delta", cells, steps, spent["seconds"]


def read_bits(text: str, names: Sequence[str]) -> dict[str, list[int]]:
    """Bits of every layer, from the words of the bank."""
    pairs = [[int(bits) for bits in word.split("/")] for word in text.split()]
    return dict(zip(names, pairs, strict=True))


def quantizers_table(path: Path) -> str:
    """Quantizers of kernels after the same training, against lsq."""
    runs = {(r["method"], r["bits"]): r for r in read_lines(path)}
    rows = []
    for (method, bits), run in sorted(runs.items(), key=lambda own: (-own[0][1],)):
        base, cells = runs.get(("lsq", bits)), ["", "", ""]
        if base is not None and method != "lsq":
            own, other = right(run), right(base)
            won, lost = int((own & ~other).sum()), int((other & ~own).sum())
            p = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
            cells = [f"{100 * (run['test'] - base['test']):+.2f}",
                     f"{won} / {lost}", f"{p:.2g}" if p else "< 1e-300"]  # fmt: skip
        rows.append(
            [f"W{bits}A{bits}", f"`{method}`", f"{100 * run['test']:.2f}", *cells,
             "yes" if run["codes_equal"] else "no", f"{run['seconds']:.0f}"]
        )  # fmt: skip
    head = ("bits", "kernels", "test, %", "against lsq", "won / lost", "p",
            "exported exactly", "seconds")  # fmt: skip
    return table(head, rows)


def right(run: dict[str, Any]) -> np.ndarray:
    """Which test images a run decided rightly, bool [10,000]."""
    packed = np.frombuffer(base64.b64decode(run["right"]), "uint8")
    return np.unpackbits(packed)[:10_000].astype(bool)


def published_table(path: Path) -> str:
    """What papers say of ImageNet: cost in GBOPs, and top-1."""
    record = json.loads(path.read_text())
    rows = [[r["method"], *(r.get(n, "") for n in record["networks"]), r["source"]]
            for r in record["rows"]]  # fmt: skip
    return table(["method", *record["networks"], "as published in"], rows)


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Rank correlation of each strategy, best first, beside what its search costs."""
    text = {"svg.hashsalt": "strategies", "svg.fonttype": "none", "font.size": 9}
    mpl.rcParams.update(text)
    families: dict[str, Callable[[dict], bool]] = {
        "tables of the float model": lambda r: r["strategy"] in TABLES,
        "trained with drawn bits": lambda r: r["strategy"] in ("one_shot", "limpq"),
        "gradients": lambda r: True,
    }
    rows = sorted((r for r in found if r["values"]), key=lambda r: r["values"]["rho"])
    figure = Figure((8, 0.8 + 0.28 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    left = list(enumerate(rows))
    for marker, (label, belongs) in zip("so^", families.items(), strict=True):
        own = [(place, row) for place, row in left if belongs(row)]
        left = [(place, row) for place, row in left if not belongs(row)]
        rho = [row["values"] for _, row in own]
        errors = [
            [r["rho"] - r["low"] for r in rho],
            [r["high"] - r["rho"] for r in rho],
        ]
        axes.errorbar(
            [r["rho"] for r in rho], [place for place, _ in own], xerr=errors,
            fmt=marker, capsize=2, elinewidth=0.8, label=label,
        )  # fmt: skip
    for place, row in enumerate(rows):
        axes.text(1.02, place, f"{row['steps']:,.0f}", ha="left", va="center")
    axes.text(1.02, len(rows), "float steps", ha="left", va="center")
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set(
        xlim=(-0.5, 1),
        ylim=(-0.7, len(rows) + 0.4),
        yticks=range(len(rows)),
        yticklabels=[row["strategy"] for row in rows],
        xlabel="rank correlation with accuracy after training, 95 % interval",
    )
    axes.legend(loc="upper left")
    figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()
