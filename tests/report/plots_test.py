"""Pictures: what is drawn is what was given, and labels do not run into each other."""

import io
import warnings
from itertools import pairwise

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report import (
    ReportError,
    ResultRow,
    plot_accuracy_bops,
    plot_attribution,
    plot_importances,
    plot_policy,
    plot_pretraining,
    plot_search,
)
from gmpq_tf.report.budgets import SearchLimit
from gmpq_tf.report.plots import plot_front, png_bytes
from gmpq_tf.report.schema import AttributionMaps, LayerImportances


def policy_of(count):
    generator = np.random.default_rng(0)
    bits = generator.integers(2, 9, (count, 2)).tolist()
    names = [f"stage4_block{index}_expand_conv" for index in range(count)]
    return BitwidthPolicy("net", dict(zip(names, map(tuple, bits), strict=True)))


def rows_of(*named):
    return [ResultRow(name, accuracy, cost, 100) for name, accuracy, cost in named]


def bar_widths(axes):
    return [bar.get_width() for bar in axes.patches]


def overlaps(texts, figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    return any(a.overlaps(b) for a, b in pairwise(boxes))


@pytest.mark.parametrize("count", [1, 9, 53])
def test_policy_bars_are_the_bits_and_shares(count):
    policy = policy_of(count)
    macs = {name: index + 1 for index, name in enumerate(policy)}
    figure = plot_policy(policy, macs)
    weights, activations, shares = figure.axes
    assert bar_widths(weights) == [bits.weight_bits for bits in policy.values()]
    assert bar_widths(activations) == [bits.activation_bits for bits in policy.values()]
    total = count * (count + 1) / 2
    np.testing.assert_allclose(
        bar_widths(shares), 100 * np.arange(1, count + 1) / total
    )
    labels = weights.get_yticklabels()
    assert [label.get_text() for label in labels] == list(policy)


def test_names_of_53_layers_do_not_overlap():
    figure = plot_policy(policy_of(53))
    png_bytes(figure)
    assert len(figure.axes) == 2
    assert not overlaps(figure.axes[0].get_yticklabels(), figure)


def test_policy_with_the_cost_of_another_model():
    with pytest.raises(ReportError, match="stage4_block0_expand_conv"):
        plot_policy(policy_of(1), {"other": 3})


def test_names_are_no_formulas_and_are_cut_in_the_middle():
    policy = BitwidthPolicy("net", {r"a$\frac$": (2, 2), "x" * 60 + "end": (3, 3)})
    figure = plot_policy(policy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png_bytes(figure)
    texts = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert texts[1].startswith("xxx") and texts[1].endswith("end")
    assert len(texts[1]) < 40


def test_importances_keep_probabilities_and_blanks():
    layers = {
        "stem": LayerImportances((8,), (1.0,), (8,), (1.0,)),
        "conv": LayerImportances((2, 3), (0.25, 0.75), (2, 4), (0.5, 0.5)),
    }
    weights, activations = plot_importances(layers).axes
    expected = [[np.nan, np.nan, 1], [0.25, 0.75, np.nan]]
    np.testing.assert_array_equal(
        np.ma.filled(weights.images[0].get_array(), np.nan), expected
    )
    assert [label.get_text() for label in activations.get_xticklabels()] == list("248")


def test_search_lines_are_the_metrics_in_their_units():
    metrics = {
        0: {"task_risk": 2.0, "expected_bit_ops": 3e9, "accuracy": 0.5},
        2: {"task_risk": 1.0, "expected_bit_ops": 1e9, "val_accuracy": 0.25},
    }
    axes = {a.get_title(): a for a in plot_search(metrics, bit_ops_budget=2e9).axes}
    assert set(axes) == {"task risk", "expected cost (GBOPs)", "accuracy (%)"}
    (risk,) = axes["task risk"].lines
    np.testing.assert_array_equal(risk.get_xdata(), [1, 3])
    np.testing.assert_array_equal(risk.get_ydata(), [2.0, 1.0])
    cost, budget = axes["expected cost (GBOPs)"].lines
    np.testing.assert_allclose(cost.get_ydata(), [3, 1])
    np.testing.assert_allclose(budget.get_ydata(), [2, 2])
    training, held_out = axes["accuracy (%)"].lines
    np.testing.assert_array_equal(training.get_ydata(), [50, np.nan])
    np.testing.assert_array_equal(held_out.get_ydata(), [np.nan, 25])


def test_every_budget_has_a_panel_with_its_line():
    limits = [
        SearchLimit("file_bytes", "bytes", 60_000),
        SearchLimit("bit_ops", "bit operations", 2e9),
        SearchLimit("latency_ms", "ms", 2.5),
    ]
    costs = {"file_bytes": 66_000, "bit_ops": 1e9, "latency_ms": 2.0}
    epoch = {f"expected_{name}": cost for name, cost in costs.items()}
    epoch |= {"zeta": 3.0, "zeta_bit_ops": 4.0, "complexity_risk": 0.5}
    axes = {a.get_title(): a for a in plot_search({0: epoch}, limits=limits).axes}
    drawn = {
        "expected file_bytes (kB)": (66, 60),
        "expected cost (GBOPs)": (1, 2),
        "expected latency_ms (ms)": (2, 2.5),
    }
    for title, (cost, budget) in drawn.items():
        expected, line = axes.pop(title).lines
        np.testing.assert_allclose(expected.get_ydata(), [cost])
        np.testing.assert_allclose(line.get_ydata(), [budget] * 2)
    zetas = axes.pop("zeta (weight of complexity)")
    assert [line.get_label() for line in zetas.lines] == ["file_bytes", "bit_ops"]
    assert list(axes) == ["complexity risk"]


def test_a_diverged_search_is_drawn():
    metrics = {0: {"task_risk": 1.0}, 1: {"task_risk": float("inf")}}
    assert png_bytes(plot_search(metrics))


@pytest.mark.parametrize("epochs", [1, 2, 25, 300])
def test_epochs_are_whole(epochs):
    figure = plot_search({epoch: {"p": 1.0} for epoch in range(epochs)})
    ticks = figure.axes[0].get_xticks()
    assert 1 <= len(ticks) <= 8
    np.testing.assert_array_equal(ticks, np.round(ticks))


def test_metrics_without_a_known_name():
    with pytest.raises(ReportError, match="Received: \\['speed'\\]"):
        plot_search({0: {"speed": 1.0}})
    with pytest.raises(ReportError, match="accuracy"):
        plot_pretraining({0: {}})


def test_pretraining_has_loss_and_accuracy():
    axes = plot_pretraining({0: {"loss": 1.0, "val_loss": 2.0, "accuracy": 0.5}}).axes
    assert [len(panel.lines) for panel in axes] == [2, 1]


def test_accuracy_groups_rows_by_their_first_word():
    rows = rows_of(
        ("float", 0.99, 12.8e9),
        ("uniform W4A4", 0.98, 0.22e9),
        ("uniform W2A2", 0.9, 0.08e9),
        ("searched", 0.97, 0.1e9),
    )
    (axes,) = plot_accuracy_bops(rows).axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        *("float", "uniform", "searched")
    ]
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [[0.08, 90], [0.22, 98]])


@pytest.mark.parametrize("cost", [2.1e4, 3.2e9, 1.8576e12])
def test_a_single_point_has_a_readable_axis(cost):
    figure = plot_accuracy_bops(rows_of(("float", 0.5, cost)))
    png_bytes(figure)
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    ticks = figure.axes[0].get_xticks()
    assert labels
    np.testing.assert_allclose([float(label) for label in labels], ticks)


def test_a_sweep_shows_every_point_and_a_line_through_the_front():
    rows = rows_of(("a", 0.5, 1e9), ("b", 0.4, 2e9), ("c", 0.7, 4e9))
    figure = plot_front(rows, [rows[0], rows[2]])
    png_bytes(figure)
    points, line = figure.axes[0].lines
    np.testing.assert_allclose(points.get_xydata(), [[1, 50], [2, 40], [4, 70]])
    np.testing.assert_allclose(line.get_xydata(), [[1, 50], [4, 70]])
    assert points.get_linestyle() == "None" and line.get_linestyle() == "-"


def test_cost_labels_do_not_overlap_over_five_decades():
    figure = plot_accuracy_bops(rows_of(("float", 0.9, 1e12), ("tiny", 0.5, 1e7)))
    png_bytes(figure)
    assert not overlaps(figure.axes[0].get_xticklabels(), figure)


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (3, 3), (10, 3)])
def test_attribution_shows_images_and_maps(count, channels):
    generator = np.random.default_rng(0)
    shape = (count, 8, 8, channels)
    images = generator.integers(0, 256, shape, dtype=np.uint8)
    maps = {name: generator.random((count, 4, 4)) for name in ("teacher", "searched")}
    distances = {"searched": np.linspace(0, 0.5, count)}
    figure = plot_attribution(
        AttributionMaps(images, np.arange(count), maps, distances)
    )
    grid = np.array(figure.axes).reshape(3, -1)
    drawn = [axes for axes in grid[0] if axes.images]
    assert len(drawn) == min(count, 8)
    first = np.squeeze(images[0])
    np.testing.assert_array_equal(drawn[0].images[0].get_array(), first)
    np.testing.assert_array_equal(grid[2, 0].images[0].get_array(), maps["searched"][0])
    assert grid[2, 0].get_xlabel() == "0.000"
    assert png_bytes(figure)


def test_png_is_a_picture_and_repeats():
    policy = policy_of(3)
    first, second = (png_bytes(plot_policy(policy)) for _ in range(2))
    assert first == second
    assert matplotlib.image.imread(io.BytesIO(first)).shape[1] == 1200
