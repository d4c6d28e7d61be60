"""Figures of the metrics that training logged, epoch by epoch."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gmpq_tf import metric_names
from gmpq_tf.budget import BIT_OPS
from gmpq_tf.limits import scale_of
from gmpq_tf.report.budgets import SearchLimit
from gmpq_tf.report.plots import GRAY, MARKERS, PALETTE, quiet
from gmpq_tf.report.schema import ReportError

Metrics = Mapping[int, Mapping[str, float]]
Panels = Mapping[str, Sequence[tuple[str, str]]]
BIT_OPS_PANEL = "expected cost (GBOPs)"

# Panels of the search picture: title -> (metric, name in the legend).
SEARCH_PANELS: Panels = {
    **{name.replace("_", " "): ((name, ""),) for name in metric_names.RISKS},
    BIT_OPS_PANEL: ((metric_names.EXPECTED_BIT_OPS, "expected"),),
    "accuracy (%)": (("accuracy", "training"), ("val_accuracy", "held out")),
    "attribution rank distance": ((metric_names.RANK_DISTANCE, ""),),
    "exponent p": ((metric_names.EXPONENT, ""),),
    "zeta (weight of complexity)": ((metric_names.ZETA, ""),),
}
PRETRAIN_PANELS: Panels = {
    "loss": (("loss", "training"), ("val_loss", "held out")),
    "accuracy (%)": SEARCH_PANELS["accuracy (%)"],
}
# Metric -> factor from its logged unit to the unit of its panel.
UNITS = {
    "accuracy": 100.0,
    "val_accuracy": 100.0,
    metric_names.EXPECTED_BIT_OPS: 1e-9,
}


def plot_search(
    metrics: Metrics,
    bit_ops_budget: float | None = None,
    limits: Sequence[SearchLimit] = (),
) -> Figure:
    """Draws a search epoch by epoch: risks (eq. 6), expected cost, accuracy.

    Args:
        metrics: epoch -> metric name -> value; missing metrics have no panel.
        bit_ops_budget: drawn as a line in the panel of the expected cost; None: no
            line.
        limits: all budgets of the search, each drawn in a panel of its resource.

    Returns:
        The figure.

    Raises:
        ReportError: `metrics` has none of the metrics that are drawn.
    """
    if bit_ops_budget and not limits:
        limits = (SearchLimit(BIT_OPS, "bit operations", bit_ops_budget),)
    panels, units = _search_panels(limits)
    figure, drawn = _epoch_figure(metrics, panels, 3, units)
    for limit in limits:
        title, scale = _cost_panel(limit)
        cost = drawn.get(title)
        if cost is not None:
            most = limit.limit * scale
            line = cost.axhline(most, color=GRAY, ls="--", label="budget")
            cost.legend(handles=[*cost.lines[:1], line], fontsize=8)
    return figure


def _search_panels(limits: Sequence[SearchLimit]) -> tuple[Panels, dict[str, float]]:
    """Returns the panels of a search with these budgets, and their metrics' units."""
    panels: dict[str, Sequence[tuple[str, str]]] = {}
    units = dict(UNITS)
    for title, lines in SEARCH_PANELS.items():
        name = lines[0][0]
        if name in (metric_names.COMPLEXITY_RISK, metric_names.ZETA):
            first, *others = [each.resource for each in limits] or [""]
            added = ((metric_names.of_resource(name, each), each) for each in others)
            lines = ((name, first), *added)
        panels[title] = lines
        if name == metric_names.EXPECTED_BIT_OPS:
            for limit in limits:
                panel, scale = _cost_panel(limit)
                metric = metric_names.expected(limit.resource)
                units[metric] = scale
                panels[panel] = ((metric, "expected"),)
    return panels, units


def _cost_panel(limit: SearchLimit) -> tuple[str, float]:
    """Returns the title of a budget's panel, and the factor for its costs."""
    if limit.resource == BIT_OPS:
        return BIT_OPS_PANEL, UNITS[metric_names.EXPECTED_BIT_OPS]
    size, unit = scale_of(limit.unit, limit.limit)
    return f"expected {limit.resource} ({unit})", 1 / size


def plot_pretraining(metrics: Metrics) -> Figure:
    """Draws how the float model trained.

    Args:
        metrics: epoch -> metric name -> value.

    Returns:
        The figure.

    Raises:
        ReportError: `metrics` has none of the metrics that are drawn.
    """
    return _epoch_figure(metrics, PRETRAIN_PANELS, columns=2)[0]


def _epoch_figure(
    metrics: Metrics,
    panels: Panels,
    columns: int,
    units: Mapping[str, float] = UNITS,
) -> tuple[Figure, dict[str, Axes]]:
    logged = {key for epoch in metrics.values() for key in epoch}
    drawn = {
        title: [line for line in lines if line[0] in logged]
        for title, lines in panels.items()
        if any(key in logged for key, _ in lines)
    }
    if not drawn:
        wanted = sorted(key for lines in panels.values() for key, _ in lines)
        raise ReportError(
            f"metrics must hold one of {wanted}. Received: {sorted(logged)}. "
            "Log them from the training."
        )
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(8, 0.4 + 2.0 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(drawn) :]:
        axes.remove()
    for axes, (title, lines) in zip(grid, drawn.items(), strict=False):
        _epoch_panel(axes, title, lines, metrics, units)
    return figure, dict(zip(drawn, grid, strict=False))


def _epoch_panel(
    axes: Axes,
    title: str,
    lines: Sequence[tuple[str, str]],
    metrics: Metrics,
    units: Mapping[str, float],
) -> None:
    epochs = [epoch + 1 for epoch in metrics]  # counted from 1, as Keras prints them
    for (key, label), color, marker in zip(lines, PALETTE, MARKERS, strict=False):
        values = [
            epoch.get(key, np.nan) * units.get(key, 1) for epoch in metrics.values()
        ]
        axes.plot(epochs, values, color=color, marker=marker, ms=3, lw=1.4, label=label)
    if len(lines) > 1:
        axes.legend(fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, max(epochs) + 0.5)
    quiet(axes)
