"""Every strategy is killed in the middle of its search, and ends as if it was not."""

import json
import os
import subprocess
import sys

import keras
import pytest

from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.search import STRATEGIES

KILLED = -9


def float_model():
    """Three layers to search, with random weights that tell classes apart."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 1))
    for index, filters in enumerate((4, 6, 4, 8)):
        x = keras.layers.Conv2D(filters, 3, padding="same", name=f"conv{index}")(x)
        x = keras.layers.BatchNormalization(name=f"norm{index}")(x)
        x = keras.layers.ReLU(name=f"relu{index}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, keras.layers.Dense(10, name="last")(x), name="small")
    kernel, bias = model.get_layer("last").get_weights()
    model.get_layer("last").set_weights([30 * kernel, bias])
    return model


def leaves(values):
    """All numbers of values, as values.json has them."""
    return [
        v for sides in values.values() for side in sides.values() for v in side.values()
    ]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("trains", [True, False], ids=["trained", "measured"])
def test_every_killed_search_finds_the_same_policy(tmp_path, repo_root, trains):
    names = [name for name, row in STRATEGIES.items() if row.gradient == trains]
    float_model().save(float_file := tmp_path / "float.keras")
    command = [sys.executable, "-m", "tests.train.killed_searches"]
    done = subprocess.run(
        [*command, str(float_file), str(tmp_path), *names],
        cwd=repo_root,
        env=os.environ | {"GMPQ_XLA_QUANTIZERS": "0"},  # compiling takes long
        capture_output=True,
        text=True,
    )
    said = {
        name: [int(code) for code in codes]
        for name, *codes in (
            line.split() for line in done.stdout.splitlines() if line[-2:] == " 0"
        )
        if name in STRATEGIES
    }
    assert said == {name: [0, KILLED, 0] for name in names}, done.stderr[-3000:]
    for name in names:
        whole, cut = (tmp_path / run / name / "search" for run in ("whole", "cut"))
        one, two = (BitwidthPolicy.load(run / "policy.json") for run in (whole, cut))
        assert one.layers == two.layers, name
        one, two = (
            json.loads((run / "values.json").read_text())["values"]
            for run in (whole, cut)
        )
        least = 1e-3 * max(map(abs, leaves(one)), default=0.0)
        for layer, sides in one.items():
            for side, values in sides.items():
                found = pytest.approx(two[layer][side], rel=1e-3, abs=least)
                assert values == found, (name, layer, side)
