"""Probabilities of all branches at once, against NumPy and against a layer alone."""

from contextlib import nullcontext

import keras
import numpy as np
import pytest

from gmpq_tf.quantizers.fused import xla_quantizers
from gmpq_tf.search import PolicySearch
from gmpq_tf.search.importances import Importances
from gmpq_tf.space import SearchSpace

SPACE = SearchSpace((2, 4, 8), (2, 3, 4))
X = np.random.default_rng(1).random((16, 6, 6, 2)).astype("float32")


def small():
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(5)(x))


def search_of(relaxation, **options):
    keras.utils.set_random_seed(0)
    search = PolicySearch(small(), SPACE, relaxation=relaxation, **options)
    random = np.random.default_rng(0)
    for variable in search.importance_variables:
        variable.assign(random.standard_normal(variable.shape))
    search.branches.set_temperature(0.7)
    return search


def test_layers_and_costs_get_the_softmax_of_numpy():
    branches = search_of("mixture").branches
    with branches.together():
        weights = [layer.branch_weights(training=True) for layer in branches.layers]
        bits = branches.expected_bits()
    assert len(weights) == len(bits) == 3
    for layer, pair, mean in zip(branches.layers, weights, bits, strict=True):
        for side, candidates in (("kernel", "weight"), ("input", "activation")):
            logits = np.array(getattr(layer, f"{side}_importance"), "float64") / 0.7
            wanted = np.exp(logits) / np.exp(logits).sum()
            which = f"{candidates}s" if candidates == "weight" else "activations"
            np.testing.assert_allclose(getattr(pair, which), wanted, rtol=1e-5)
            widths = getattr(layer, f"{candidates}_bits")
            np.testing.assert_allclose(getattr(mean, which), wanted @ widths, rtol=1e-5)


def test_outside_of_the_block_importances_are_read_anew():
    branches = search_of("mixture").branches
    side = branches.layers[1].kernel_branches
    with branches.together():
        side.importance.assign([0.0, 0.0, 50.0])
        assert np.asarray(side.weights_now())[2] < 0.99
    np.testing.assert_allclose(side.weights_now(), [0.0, 0.0, 1.0], atol=1e-6)


@pytest.mark.parametrize("relaxation", ["mixture", "sampled"])
def test_a_step_is_the_one_that_computes_every_side_alone(relaxation, monkeypatch):
    found = []
    for alone in (False, True):
        search = search_of(relaxation, eta=1.0 if relaxation == "mixture" else 0.0)
        if alone:
            monkeypatch.setattr(Importances, "together", lambda self: nullcontext())
        search.compile(
            keras.optimizers.SGD(0.01),
            keras.optimizers.SGD(0.1),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        with xla_quantizers(False):
            search.fit(X, np.arange(16) % 5, batch_size=8, verbose=0, shuffle=False)
        found.append([np.asarray(v) for v in search.trainable_variables])
    for together, one in zip(*found, strict=True):
        np.testing.assert_allclose(together, one, rtol=1e-4, atol=1e-6)
