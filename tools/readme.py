"""Write the table and the picture of README.md from results/: no number is typed twice.

Run `python tools/readme.py` (or `make readme`) after a study changed;
tests/docs/readme_test.py fails until then.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PICTURE = "docs/assets/gain.svg"
START, END = "<!-- rows of results/ -->", "<!-- end of rows -->"
BLUE, GRAY, LIGHT = "#0072B2", "#767676", "#C8C8C8"


@dataclass(frozen=True)
class Row:
    """A measured comparison.

    Args:
        what: network, images and budget.
        trained: whether the model was fine-tuned after.
        accuracies: of the float model, of uniform bits and of searched ones, 0..1;
            None where it was not measured.
        study: folder in results/.
        note: such as the size of the file.
    """

    what: str
    trained: bool
    accuracies: tuple[float, float | None, float]
    study: str
    note: str = ""


def rows() -> list[Row]:
    """Returns the rows, from the files of the studies."""
    digits = by_name(_json("digits", "summary.json"))
    bank = {
        line["policy"]: line["test"] for line in _lines("policy_bank/untrained.jsonl")
    }
    trained = by_name(_json("cifar10_resnet8", "summary.json"))
    compressed = _json("post_training", "resnet8_command.json")
    photos = _json("transfer_bank", "summary.json")
    targets = _json("post_training", "resnet8_targets.json")["rows"]
    unlabelled = targets["60kB"]["auto"]["accuracy"]
    float_resnet8 = compressed["float_accuracy"]
    return [
        Row(
            "MobileNetV2, ImageNet, W5A5",
            False,
            (
                photos["bank"]["float top-1"],
                photos["bank"]["W5A5"]["top-1 of uniform"],
                photos["chosen"]["divergence | flowers17 | W5A5"],
            ),
            "transfer_bank",
            "250 photographs",
        ),
        Row(
            "ResNet-8, CIFAR-10, W3A3",
            False,
            (float_resnet8, bank["uniform"], bank["table_policy"]),
            "policy_bank",
        ),
        Row(
            "digits, W2A4",
            False,
            tuple(
                digits[name]["accuracy"]
                for name in ("float", "uniform W2A4", "searched")
            ),
            "digits",
        ),
        Row(
            "ResNet-8, CIFAR-10, 60kB",
            False,
            (float_resnet8, None, compressed["tflite_accuracy"]),
            "post_training",
            f"{compressed['file_bytes']:,} bytes; labels chose the correction, "
            f"{_percent(unlabelled)} without",
        ),
        Row(
            "ResNet-8, CIFAR-10, W3A3",
            True,
            (
                float_resnet8,
                trained["uniform W3A3 (uniform_w3a3)"]["tflite_accuracy"],
                trained["searched_b3"]["tflite_accuracy"],
            ),
            "cifar10_resnet8",
        ),
    ]


def by_name(summary: Any) -> dict[str, Any]:
    """Returns the rows of a summary by their names.

    Args:
        summary: of a study.
    """
    return {row["name"]: row for row in summary["rows"]}


def table(found: Sequence[Row]) -> str:
    """Returns the table of README.md.

    Args:
        found: its rows.
    """
    lines = [
        "| network, images, budget | training | float | uniform | searched bits | |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        cells = (
            row.what,
            "yes" if row.trained else "none",
            *map(_percent, row.accuracies),
            f"[{row.study}](results/{row.study}){', ' if row.note else ''}{row.note}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def readme(text: str, found: Sequence[Row]) -> str:
    """Returns README.md with its table.

    Args:
        text: README.md.
        found: rows of the table.
    """
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table(found)}\n{END}{after}"


def draw(found: Sequence[Row], path: Path) -> None:
    """Draws float, uniform and searched accuracy of what was not trained after.

    Args:
        found: rows of the table.
        path: an SVG file.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = [row for row in found if not row.trained and row.accuracies[1] is not None]
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    axes = figure.subplots()
    bars = (("float", LIGHT), ("uniform bits", GRAY), ("searched bits", BLUE))
    for index, (name, color) in enumerate(bars):
        places = [place + 0.27 * (index - 1) for place in range(len(shown))]
        heights = [100 * float(row.accuracies[index] or 0) for row in shown]
        drawn = axes.bar(places, heights, 0.25, color=color, label=name)
        axes.bar_label(drawn, fmt="%.1f", fontsize=8, padding=1)
    axes.set_xticks(range(len(shown)), [row.what for row in shown], fontsize=9)
    axes.set_ylim(0, 112)
    axes.set_yticks([0, 50, 100])
    axes.set_ylabel("top-1, %", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=3, fontsize=8, frameon=False, loc="upper left")
    title = "No training: the same bit operations, bits chosen layer by layer"
    axes.set_title(title, fontsize=10)
    options = {
        "svg.fonttype": "none",
        "svg.hashsalt": "gmpq",
        "font.family": "sans-serif",
    }
    with matplotlib.rc_context(options):
        figure.patch.set_facecolor("white")
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def main() -> None:
    """Writes README.md and its picture."""
    found = rows()
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(encoding="utf-8"), found), encoding="utf-8")
    (ROOT / PICTURE).parent.mkdir(exist_ok=True)
    draw(found, ROOT / PICTURE)
    sys.stdout.write(f"Wrote {path} and {PICTURE}\n")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _json(study: str, name: str) -> Any:
    return json.loads((RESULTS / study / name).read_text(encoding="utf-8"))


def _lines(name: str) -> Iterator[Any]:
    text = (RESULTS / name).read_text(encoding="utf-8")
    yield from map(json.loads, text.splitlines())


if __name__ == "__main__":
    main()
