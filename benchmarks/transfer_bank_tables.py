"""Tables and the figure of `transfer_bank_report.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfer_bank_network import BUDGETS
from transfer_bank_values import LETTERS, MEASURED, SOURCES, TARGETS

from gmpq_tf.search.values import Values, total


def tables(summary: Mapping[str, Any]) -> str:
    """The tables, as Markdown."""
    parts = [_table_of(summary, target) for target in TARGETS]
    head = "| values | " + " | ".join(f"{s} {b}" for s in SOURCES for b in BUDGETS)
    lines = [f"{head} |", "|" + "---|" * (1 + len(SOURCES) * len(BUDGETS))]
    for kind in MEASURED:
        cells = [
            summary["chosen"].get(f"{kind} | {s} | {b}")
            for s in SOURCES
            for b in BUDGETS
        ]
        shown = ["" if c is None else f"{100 * c:.1f}" for c in cells]
        lines.append(f"| {labelled(kind)} | " + " | ".join(shown) + " |")
    parts.append("Top-1 of the policy chosen, %:\n\n" + "\n".join(lines))
    tests = [
        "| made on | budget | pair | won | lost | p |",
        "|" + "---|" * 6,
        *(
            "| {source} | {budget} | {pair} | {won} | {lost} | {p} |".format(**row)
            for row in summary["mcnemar"]
        ),
    ]
    parts.append("McNemar:\n\n" + "\n".join(tests))
    return "\n\n".join(parts) + "\n"


def _table_of(summary: Mapping[str, Any], target: str) -> str:
    columns = [(s, b) for s in SOURCES for b in BUDGETS]
    head = ["values", *(f"{s} {b}" for s, b in columns), "proxies less A", "gap"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    names = dict.fromkeys(k.split(" | ")[0] for k in summary["correlations"])
    for kind in names:
        cells = []
        for source, budget in columns:
            key = " | ".join((kind, source, budget, target))
            row = summary["correlations"].get(key)
            cells.append("{:.2f} ({:.2f}, {:.2f})".format(*row) if row else "")
        for part in ("differences", "gaps"):
            row = summary[part][f"{kind} | {target}"]
            cells.append("{:+.2f} ({:+.2f}, {:+.2f})".format(*row))
        lines.append(f"| {labelled(kind)} | " + " | ".join(cells) + " |")
    return f"Rank correlation with the bank's {target}:\n\n" + "\n".join(lines)


def labelled(kind: str) -> str:
    """A kind of value with its letter."""
    return f"{LETTERS[kind]}: {kind}" if kind in LETTERS else kind


def draw_figure(
    path: Path, bank: Any, valued: Mapping[str, Mapping[str, Values]]
) -> None:
    """Sums of values against top-1, one panel for each source and A, B, D."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown = ("R_E", "R_G, p of eq. 8", "divergence")
    figure, axes = plt.subplots(
        len(valued), 3, figsize=(8, 7), sharey=True, layout="tight", squeeze=False
    )
    for row, source in zip(axes, valued, strict=True):
        for axis, kind in zip(row, shown, strict=True):
            for budget, colour in zip(BUDGETS, ("#b5442e", "#27619c"), strict=True):
                sums = [
                    -total(valued[source][kind], bank.bits[name])
                    for name in bank.random(budget)
                ]
                top1 = 100 * bank.truth(budget, "top-1")
                axis.scatter(sums, top1, s=9, color=colour, label=budget)
            axis.set_title(f"{kind}, {source}", fontsize=9)
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter("")
            axis.tick_params(labelsize=8)
    axes[0][0].legend(fontsize=8)
    for row in axes:
        row[0].set_ylabel("top-1 on the target, %", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("risk added, sum over choices", fontsize=8)
    figure.savefig(path, dpi=80)
