"""report.html: one self-contained file with table, figures and provenance."""

import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gmpq_tf.budget import LATENCY_MS
from gmpq_tf.files import write_atomic
from gmpq_tf.report import curves, object_plots, plots, read
from gmpq_tf.report.budgets import SearchLimit, budget_lines, search_limits
from gmpq_tf.report.drawing import FigureFormat, figure_bytes, inline_svg
from gmpq_tf.report.headline import headline
from gmpq_tf.report.html_table import html_table
from gmpq_tf.report.layout import COST, IMPORTANCES, VALUES
from gmpq_tf.report.layout import METRICS as LOG
from gmpq_tf.report.objects import CURVES, read_curves, read_objects
from gmpq_tf.report.read_maps import read_attribution
from gmpq_tf.report.schema import (
    LOSSES,
    METRICS,
    ReportError,
    Summary,
)
from gmpq_tf.report.table import format_figure, format_times
from gmpq_tf.report.values import decision_line, values_section

STYLE = """
:root { color-scheme: light dark; --line: #d0d0d0; --soft: #5a5a5a; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #b0b0b0; } }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 58rem;
  padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem;
  text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
figure { margin: 0; }
svg { background: #fff; border-radius: .4rem; display: block; height: auto;
  min-width: 34rem; width: 100%; }
.facts { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); }
.facts div { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem; }
.facts strong { display: block; font-size: 1.5rem; line-height: 1.3; }
td.taken { font-weight: bold; text-decoration: underline; }
meter { width: 8rem; }
figcaption, .note { color: var(--soft); }
dl { display: grid; gap: .2rem 1rem; grid-template-columns: max-content 1fr; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; } dd { margin: 0 1rem; }
  .facts dd { margin: 0; } }
@media print { :root { color-scheme: light; --line: #d0d0d0; --soft: #5a5a5a; }
  body { font-size: 9pt; max-width: none; padding: 0; } svg { min-width: 0; }
  section, figure, tr, .facts div { break-inside: avoid; } h2 { break-after: avoid; }
  .wide { overflow: visible; } th, td { padding: .2rem .3rem; } }
"""
# Whatever the files of the run contain, the browser loads and runs nothing.
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Picture:
    """A section of the page with one picture.

    Args:
        title: its heading.
        caption: one sentence on how to read it.
        draw: (workdir, summary) -> figure; raises ReportError if a file is missing.
        of_training: whether only searches that train have this picture.
    """

    title: str
    caption: str
    draw: Callable[[Path, Summary], Figure]
    of_training: bool = False


def _draw_accuracy(workdir: Path, summary: Summary) -> Figure:
    if all(row.accuracy is None for row in summary.rows):
        raise ReportError("the images had no labels.")
    return plots.plot_accuracy_bops(summary.rows, summary.metric)


def _draw_policy(workdir: Path, summary: Summary) -> Figure:
    has_cost = (workdir / COST).is_file()
    macs = read.read_macs(workdir) if has_cost else None
    return plots.plot_policy(read.read_policy(workdir), macs)


def _draw_importances(workdir: Path, summary: Summary) -> Figure:
    return plots.plot_importances(read.read_importances(workdir))


def _draw_search(workdir: Path, summary: Summary) -> Figure:
    metrics = read.read_metrics(workdir, "search")
    return curves.plot_search(metrics, limits=search_limits(summary, _made_by(workdir)))


def _draw_attribution(workdir: Path, summary: Summary) -> Figure:
    if summary.attribution is None:
        raise ReportError("this run recorded no attribution maps.")
    return plots.plot_attribution(read_attribution(workdir, summary.attribution))


def _draw_pretraining(workdir: Path, summary: Summary) -> Figure:
    return curves.plot_pretraining(read.read_metrics(workdir, "pretrain"))


PICTURES = (
    Picture(
        "Accuracy against cost",
        "Accuracy of the Keras models{on_images} against their bit operations: "
        "up and left is better.",
        _draw_accuracy,
    ),
    Picture(
        "Policy",
        "The bits the search chose for each layer, beside the layer's share of the "
        "multiply-adds where cost.json gives it.",
        _draw_policy,
    ),
    Picture(
        "Branch probabilities",
        "How sure the search was of each layer's bits at its end (blank: not a "
        "candidate); the policy takes the likeliest unless the budget forbids it.",
        _draw_importances,
        of_training=True,
    ),
    Picture(
        "Search",
        "The three risks of the search, its expected cost of each resource that had a "
        "budget (dashed) and what else it logged, epoch by epoch.",
        _draw_search,
        of_training=True,
    ),
    Picture(
        "Attribution",
        "Where each network looks (bright: more), with the rank distance to the "
        "teacher's map below each map: less is better.",
        _draw_attribution,
    ),
    Picture("Pretraining", "How the float model trained.", _draw_pretraining),
)


def _draw_objects(workdir: Path, summary: Summary) -> Figure:
    return object_plots.plot_objects(read_objects(workdir))


def _draw_curves(workdir: Path, summary: Summary) -> Figure:
    found_by: dict[str, Any] = {}
    for folder in sorted(p.parent.name for p in workdir.glob(f"*/{CURVES}")):
        name = "float" if folder == "pretrain" else folder
        found_by[name] = read_curves(workdir / folder)
        found_by[f"{name}, .tflite"] = read_curves(workdir / folder, "tflite_")
    found = {n: c for n, c in sorted(found_by.items(), key=_float_first) if c}
    if not found:
        raise ReportError("no evaluation left precision and recall.")
    return object_plots.plot_precision_recall(found)


def _float_first(named: tuple[str, Any]) -> bool:
    return named[0] != "float"


# Pictures of detectors only.
OBJECT_PICTURES = (
    Picture(
        "Objects found",
        "The same held-out images: their labels, and what each model finds with a "
        "score of 50 % or more.",
        _draw_objects,
    ),
    Picture(
        "Precision and recall",
        "Of each class at an IoU of 0.5, with the area below; a file has its model's "
        "line where they decide alike.",
        _draw_curves,
    ),
)


def pictures_of(summary: Summary) -> tuple[Picture, ...]:
    """Returns the pictures of a run; those of boxes only for detectors."""
    return (*PICTURES, *OBJECT_PICTURES) if summary.metric == "map_07" else PICTURES


def write_report(workdir: str | Path, beside: Sequence[str | Path] = ()) -> Path:
    """Writes the report of a run, `report/report.html`, one self-contained file.

    Args:
        workdir: folder of the run. It must hold `summary.json`; other files that are
            missing or damaged are named on the page.
        beside: folders of other runs, whose rows are drawn together with this run's.

    Returns:
        The path of the page.

    Raises:
        ReportError: `summary.json` is missing or has the wrong form.
    """
    workdir = Path(workdir)
    runs = [
        (Path(run).resolve().name, read.read_summary(run)) for run in (workdir, *beside)
    ]
    page = "\n".join(_page(workdir, read.read_summary(workdir), runs)) + "\n"
    path = workdir / "report" / "report.html"
    return write_atomic(path, page.encode("utf-8", "replace"))


def _page(
    workdir: Path, summary: Summary, runs: Sequence[tuple[str, Summary]]
) -> Iterator[str]:
    title = html.escape(f"{summary.model} on {summary.dataset}")
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
    yield f"<title>{title}: bit-width policy</title>\n<style>{STYLE}</style>\n</head>"
    yield f"<body>\n<main>\n<h1>{title}</h1>"
    yield from headline(workdir, summary, _predicted_ms(workdir, summary))
    yield from (f"<p>{html.escape(line)}</p>" for line in _headlines(summary))
    yield from _budgets(workdir, summary)
    yield from (f"<p>{html.escape(line)}</p>" for line in decision_line(workdir))
    yield html_table(summary)
    yield from (f"<p>{html.escape(line)}</p>" for line in _float_layers(workdir))
    pictures = pictures_of(summary)
    pictures = (_front(runs), *pictures) if len(runs) > 1 else pictures
    trained = _is_trained(workdir / "search")
    for picture in pictures:
        if trained or not picture.of_training:
            yield _section(picture, workdir, summary)
    yield from values_section(workdir, _policy_bits(workdir))
    yield _provenance(workdir, summary)
    yield "</main>\n</body>\n</html>"


def _headlines(summary: Summary) -> Iterator[str]:
    for row in summary.rows:
        if row.name.split()[0] == "searched":
            saving = summary.full_precision_bit_ops / row.bit_ops
            right = format_figure(row.accuracy, summary.metric)
            if summary.metric != "accuracy":
                right = f"{METRICS[summary.metric]} {right}"
            yield (
                f"{row.name}: {'' if row.accuracy is None else f'{right} with '}"
                f"{format_times(saving)} times fewer bit operations than full "
                "precision."
            )


def _budgets(workdir: Path, summary: Summary) -> Iterator[str]:
    """Yields each budget with the policy's cost, in words and as a gauge."""
    try:
        limits = search_limits(summary, _made_by(workdir))
    except ReportError as error:
        yield f"<p>Budgets left out: {html.escape(str(error))}</p>"
        return
    for limit, line in zip(limits, budget_lines(limits), strict=True):
        yield f"<p>{html.escape(line)} {_gauge(limit)}</p>"


def _predicted_ms(workdir: Path, summary: Summary) -> float | None:
    """Returns the predicted milliseconds of the policy, if they had a budget."""
    try:
        limits = search_limits(summary, _made_by(workdir))
    except ReportError:
        return None
    return next((x.cost for x in limits if x.resource == LATENCY_MS), None)


def _gauge(limit: SearchLimit) -> str:
    if limit.cost is None or not limit.limit:
        return ""
    share = limit.cost / limit.limit
    label = html.escape(f"{limit.resource} used of its budget")
    return f'<meter min="0" max="1" value="{share:.4f}" aria-label="{label}"></meter>'


def _float_layers(workdir: Path) -> Iterator[str]:
    """Names the layers computed in float, whose operations every row includes."""
    try:
        found = read.read_float_layers(workdir)
    except ReportError:  # the section of the policy reports the error
        return
    if found:
        names = ", ".join(
            f"{name} ({macs:,} multiply-adds)" for name, macs in found.items()
        )
        yield f"Float in every row, counted at 32 x 32 bits: {names}."


def _section(picture: Picture, workdir: Path, summary: Summary) -> str:
    heading = f"<section>\n<h2>{_worded(picture.title, summary)}</h2>"
    try:
        figure = picture.draw(workdir, summary)
    except ReportError as error:
        note = html.escape(f"Left out: {_without(workdir, error)}")
        return f'{heading}\n<p class="note">{note}</p>\n</section>'
    drawn = inline_svg(figure, slug(picture), picture.title)
    return (
        f'{heading}\n<figure>\n<div class="wide">\n{drawn}\n</div>\n'
        f"<figcaption>{html.escape(_worded(picture.caption, summary))}</figcaption>\n"
        "</figure>\n</section>"
    )


def _is_trained(search: Path) -> bool:
    """Whether a search trained; without training it leaves only values.json."""
    traces = [search / name for name in (IMPORTANCES, LOG)]
    return not (search / VALUES).is_file() or any(path.is_file() for path in traces)


def _worded(text: str, summary: Summary) -> str:
    """Says the metric that the run is compared by, and the images."""
    text = text.replace("{on_images}", summary.on_images)
    if summary.metric not in LOSSES:
        return text
    for word, other in (("accuracy", "loss"), ("Accuracy", "Loss"), ("up", "down")):
        text = re.sub(rf"\b{word}\b", other, text)
    return text


def _front(runs: Sequence[tuple[str, Summary]]) -> Picture:
    """Returns the picture of several runs: all rows, and their Pareto front."""
    rows = [r for _, run in runs for r in run.rows if r.accuracy is not None]
    metrics = {run.metric for _, run in runs}

    def draw(workdir: Path, summary: Summary) -> Figure:
        if len(metrics) > 1:
            raise ReportError(
                "Runs drawn together must be compared by the same metric. Received: "
                f"{', '.join(sorted(metrics))}. Leave the others out of --beside."
            )
        if not rows:
            raise ReportError("no run had labels.")
        return plots.plot_front(rows, plots.front(rows), summary.metric)

    names = (f"{name} ({run.dataset}{run.on_images})" for name, run in runs)
    return Picture("Several runs", f"Every row of {', '.join(names)}.", draw)


def slug(picture: Picture) -> str:
    """Returns the title of a picture as a file name: `accuracy_against_cost`."""
    return picture.title.lower().replace(" ", "_")


def write_figures(workdir: str | Path, kind: FigureFormat) -> list[Path]:
    """Writes every picture of a run's report that can be drawn as a file of its own.

    Args:
        workdir: the folder of the run, as `write_report` takes it.
        kind: "png", "svg" or "pdf".

    Returns:
        The paths, in `report/figures`.

    Raises:
        ReportError: `summary.json` is missing or has the wrong form, or the kind is
            unknown.
    """
    workdir = Path(workdir)
    summary, written = read.read_summary(workdir), []
    for picture in pictures_of(summary):
        try:
            figure = picture.draw(workdir, summary)
        except ReportError:  # the page reports the error
            continue
        path = workdir / "report" / "figures" / f"{slug(picture)}.{kind}"
        written.append(write_atomic(path, figure_bytes(figure, kind)))
    return written


def _without(workdir: Path, error: ReportError) -> str:
    """Returns an error's message without the path of the run, as pages are shared."""
    return str(error).replace(f"{workdir}/", "")


def _policy_bits(workdir: Path) -> Mapping[str, tuple[int, int]]:
    """Returns layer -> (weight, activation) bits of the policy; {} without one."""
    try:
        policy = read.read_policy(workdir)
    except ReportError:
        return {}
    return {n: (b.weight_bits, b.activation_bits) for n, b in policy.items()}


def _made_by(workdir: Path) -> Mapping[str, Any]:
    """Returns the policy's provenance; {} without one, which its section reports."""
    try:
        return read.read_policy(workdir).made_by
    except ReportError:
        return {}


def _provenance(workdir: Path, summary: Summary) -> str:
    facts = {
        "data set": summary.dataset,
        "model": summary.model,
        "command": summary.command,
        "versions": summary.versions,
        "policy": _made_by(workdir),
    }
    lines = [
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>"
        for key, value in _flatten("", facts)
    ]
    body = "\n".join(lines)
    return f"<section>\n<h2>Provenance</h2>\n<dl>\n{body}\n</dl>\n</section>"


def _flatten(prefix: str, facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flatten(f"{prefix}{key} / ", value)
        elif value is not None:
            yield f"{prefix}{key}", str(value)
