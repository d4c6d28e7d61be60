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
    """Three layers to search, with random weights."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 1))
    for index, filters in enumerate((4, 6, 4, 8)):
        x = keras.layers.Conv2D(filters, 3, padding="same", name=f"conv{index}")(x)
        x = keras.layers.BatchNormalization(name=f"norm{index}")(x)
        x = keras.layers.ReLU(name=f"relu{index}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="last")(x), name="small")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_every_killed_search_finds_the_same_policy(tmp_path, repo_root):
    float_model().save(float_file := tmp_path / "float.keras")
    command = [sys.executable, "-m", "tests.train.killed_searches"]
    done = subprocess.run(
        [*command, str(float_file), str(tmp_path)],
        cwd=repo_root,
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
    assert said == {name: [0, KILLED, 0] for name in STRATEGIES}, done.stderr[-3000:]
    for name in STRATEGIES:
        whole, cut = (tmp_path / run / name / "search" for run in ("whole", "cut"))
        one, two = (BitwidthPolicy.load(run / "policy.json") for run in (whole, cut))
        assert one.layers == two.layers, name
        one, two = (
            json.loads((run / "values.json").read_text())["values"]
            for run in (whole, cut)
        )
        for layer, sides in one.items():
            for side, values in sides.items():
                found = pytest.approx(two[layer][side], rel=1e-3, abs=1e-3)
                assert values == found, (name, layer, side)
