"""What counts as diverged: every variable of the search, and every loss of a fit."""

import numpy as np
import pytest

from gmpq_tf.search.divergence import WatchedMean, check_temperature, not_finite
from gmpq_tf.search.errors import DivergenceError
from tests.search.policy_search_test import compiled


@pytest.fixture(scope="module")
def search():
    return compiled(eta=10.0)


PLACES = {
    "kernel": lambda s: s.hypernet.get_layer("conv1").kernel,
    "bias": lambda s: s.hypernet.get_layer("head").bias,
    "statistic": lambda s: s.hypernet.get_layer("norm2").moving_variance,
    "range": lambda s: s.hypernet.get_layer("conv2").input_quantizer.log2_range,
    "step": lambda s: s.hypernet.get_layer("conv1").kernel_quantizer.log2_step,
    "zeta": lambda s: s.zeta,
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", sorted(PLACES))
def test_policy_is_refused_while_one_variable_is_not_finite(search, place, value):
    variable = PLACES[place](search)
    before = np.array(variable)
    broken = before.copy()
    broken.flat[0] = value
    bits = search.policy()
    variable.assign(broken)
    try:
        assert not_finite(search.variables) == [variable.path]
        with pytest.raises(DivergenceError, match=f"not finite: {variable.path}[.]"):
            search.policy()
    finally:
        variable.assign(before)
    assert search.policy() == bits


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_policy_is_refused_by_layer_while_an_importance_is_not_finite(search, value):
    """Of one infinite importance the softmax is NaN, or hides it: -inf has pi = 0."""
    importance = search.mixed_layers()[2].input_importance
    importance.assign([0.0, value, 0.0])
    try:
        with pytest.raises(DivergenceError, match=r"finite importances.*'conv2'"):
            search.policy()
    finally:
        importance.assign([0.0, 0.0, 0.0])


def test_message_names_three_variables_and_counts_the_others(search):
    layers = [search.hypernet.get_layer(f"conv{i}") for i in range(3)]
    before = [[np.array(w) for w in layer.weights] for layer in layers]
    for layer in layers:
        layer.kernel.assign(np.array(layer.kernel) * np.nan)
        layer.bias.assign(np.array(layer.bias) * np.nan)
    with pytest.raises(DivergenceError, match=r"conv0/kernel, .* and 3 more\."):
        search.policy()
    for layer, weights in zip(layers, before, strict=True):
        layer.set_weights(weights)


def test_watched_mean_is_a_mean_that_remembers():
    metric = WatchedMean(name="loss")
    for value in (1.0, 4.0):
        metric.update_state(value)
    assert (float(metric.result()), float(metric.broken)) == (2.5, 0)
    for value in (np.nan, np.inf):
        metric.update_state(value)
    metric.reset_state()
    metric.update_state(3.0)
    assert (float(metric.result()), float(metric.broken)) == (3, 2)
    metric.forget()
    assert float(metric.broken) == 0


@pytest.mark.parametrize("value", [0.0, 1e-7, -1.0, np.nan, np.inf])
def test_impossible_temperatures_are_refused(search, value):
    with pytest.raises(ValueError, match="finite and at least 1e-06"):
        check_temperature(value)
    with pytest.raises(ValueError, match="finite and at least 1e-06"):
        search.set_temperature(value)
    assert search.temperature == 1
