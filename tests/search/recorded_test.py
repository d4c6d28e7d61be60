"""Searches compute, and back up, what they did before `PolicySearch` was parted.

`recorded.json` was written at b70e67a, of which graphs without XLA have the same bits.
To record anew: `python -m tests.search.recorded_test > tests/search/recorded.json`.
"""

import functools
import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from gmpq_tf.run.loop import training_variables
from gmpq_tf.search import PolicySearch

OPTIONS = {
    "budget": {"bit_ops_budget": 0.0112, "eta": 10.0},
    "edmips": {"zeta": 300.0, "eta": 0.0},
}
FILE = Path(__file__).with_name("recorded.json")


@functools.cache
def searched(name):
    """Three steps of a tiny search: variables, logs and probabilities."""
    keras.backend.clear_session()
    x = inputs = keras.Input((8, 8, 1))
    for i, channels in enumerate((4, 6, 6)):
        x = keras.layers.Conv2D(channels, 3, padding="same", name=f"conv{i}")(x)
        x = keras.layers.BatchNormalization(name=f"norm{i}")(x)
        x = keras.layers.ReLU(name=f"relu{i}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x), name="net")
    rng = np.random.default_rng(0)
    for kernel in (v for v in model.trainable_variables if v.name == "kernel"):
        kernel.assign(0.5 * rng.standard_normal(kernel.shape))
    search = PolicySearch(model, **OPTIONS[name])
    search.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.optimizers.Adam(0.05),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    images, labels = rng.random((48, 8, 8, 1)), rng.integers(0, 3, 48)
    fitted = search.fit(
        images.astype("float32"), labels, batch_size=16, verbose=0, shuffle=False
    )
    return {
        "variables": [f"{v.path} {v.shape}" for v in training_variables(search)],
        "logs": {key: float(values[0]) for key, values in fitted.history.items()},
        "probabilities": {
            layer.name: [np.asarray(p).tolist() for p in layer.branch_probabilities()]
            for layer in search.mixed_layers()
        },
        "policy": {
            layer: [bits.weight_bits, bits.activation_bits]
            for layer, bits in search.policy().items()
        },
    }


@pytest.mark.quick_rows(1)
@pytest.mark.filterwarnings("ignore:.*are all zero")
@pytest.mark.parametrize("name", OPTIONS)
def test_a_search_computes_what_it_computed(name):
    """To 1e-3: another processor may round one activation the other way."""
    recorded, now = json.loads(FILE.read_text())[name], searched(name)
    assert now["logs"] == pytest.approx(recorded["logs"], rel=1e-3)
    for layer, pair in recorded["probabilities"].items():
        for before, after in zip(pair, now["probabilities"][layer], strict=True):
            np.testing.assert_allclose(after, before, rtol=1e-3)
    assert now["policy"] == recorded["policy"]


@pytest.mark.filterwarnings("ignore:.*are all zero")
@pytest.mark.parametrize("name", OPTIONS)
def test_backups_keep_the_order_of_their_variables(name):
    """`EpochBackup` stores them by number: older backups are read in this order."""
    recorded = json.loads(FILE.read_text())[name]
    assert searched(name)["variables"] == recorded["variables"]


if __name__ == "__main__":
    os.environ.setdefault("GMPQ_XLA_QUANTIZERS", "0")
    json.dump({name: searched(name) for name in OPTIONS}, sys.stdout, indent=1)
