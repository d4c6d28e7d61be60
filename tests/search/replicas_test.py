"""A share of the batch attributed on replicas is that share on one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.attribution import drawn_images
from gmpq_tf.distribution import synchronized_statistics
from gmpq_tf.search import PolicySearch
from tests.search.policy_search_test import LOSS, classifier

ROOT = Path(__file__).resolve().parents[2]
IMAGES, REPLICAS, STEPS = 24, 2, 3


def searching() -> PolicySearch:
    keras.utils.set_random_seed(4)
    search = PolicySearch(
        classifier(), eta=50.0, attribution_share=0.25, bit_ops_budget=0.0112
    )
    optimizers = keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.5)
    search.compile(*optimizers, loss=LOSS["logits"], jit_compile=False)
    return search


def searched(search: PolicySearch) -> dict:
    rng = np.random.default_rng(1)
    x = rng.random((IMAGES * STEPS, 8, 8, 1)).astype("float32")
    y = rng.integers(0, 3, IMAGES * STEPS)
    with synchronized_statistics(search):
        search.calibrate([x])
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(IMAGES, True)
        logs = search.fit(data, verbose=0, shuffle=False).history
    return {
        "logs": {name: values[0] for name, values in logs.items()},
        "importances": [np.array(v).tolist() for v in search.importance_variables],
        "weights": [np.array(v).tolist() for v in search.network_variables],
        "images": search.generalization.map_count.result()[0],
    }


def on_replicas() -> dict:
    (cpu,) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration()] * REPLICAS
    tf.config.set_logical_device_configuration(cpu, parts)
    with tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(REPLICAS)]).scope():
        return searched(searching())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are all zero")
def test_replicas_attribute_their_share_as_one_device_would():
    """Each draws the same places of its own part; the risk is the mean over all."""
    command = [sys.executable, "-m", "tests.search.replicas_test"]
    environment = dict(os.environ, TF_NUM_INTRAOP_THREADS="1")
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, timeout=240
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    search, part = searching(), IMAGES // REPLICAS

    def of_each_part(images, step):
        own = drawn_images(part, 0.25, step)
        return tf.concat([own + i * part for i in range(REPLICAS)], axis=0)

    search.generalization.drawn = of_each_part
    ours = searched(search)
    assert ours["images"] == IMAGES * STEPS / 4
    assert theirs["logs"] == pytest.approx(ours["logs"], rel=1e-3)
    for name in ("importances", "weights"):
        for a, b in zip(theirs[name], ours[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=0.01, atol=1e-4)
    assert theirs["images"] == ours["images"]


if __name__ == "__main__":
    print(json.dumps(on_replicas()))
