"""What earlier releases saved is read, and computes what it computed then.

The files are of other checkouts, see `make.py`. Recorded outputs are compared to what
convolutions of another processor may differ by; everything else exactly.
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.run.loop import EpochBackup
from tests.saved.make import METHODS, float_model, images, searches

HERE = Path(__file__).parent
RELEASES = ["b70e67a"]
NAMES = ["_".join(pair) for pair in METHODS]


@pytest.fixture(params=RELEASES)
def release(request):
    return HERE / request.param


def check_outputs(found, release, name):
    recorded = np.load(release / "outputs.npz")[name]
    assert len(np.unique(recorded)) > 3  # no model that says the same of all images
    np.testing.assert_allclose(found, recorded, rtol=1e-4, atol=1e-5)


def test_every_folder_is_tested():
    folders = [p.name for p in HERE.iterdir() if (p / "outputs.npz").exists()]
    assert sorted(folders) == sorted(RELEASES)


@pytest.mark.quick_rows(3)
@pytest.mark.parametrize("kind", ["student", "hypernet", "search"])
@pytest.mark.parametrize("name", NAMES)
def test_models_compute_what_they_did(release, name, kind):
    model = keras.models.load_model(release / f"{name}.{kind}.keras")
    check_outputs(model(images()), release, f"{name}.{kind}")


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("name", NAMES)
def test_searches_go_on_and_choose_the_policy_they_chose(release, name):
    search = keras.models.load_model(release / f"{name}.search.keras")
    recorded = json.loads((release / f"{name}.importances.json").read_text())
    for layer, found in search.importances()["layers"].items():
        for key, values in recorded["layers"][layer].items():
            np.testing.assert_allclose(found[key], values, rtol=1e-5)
    policy = gmpq.BitwidthPolicy.load(release / f"{name}.policy.json")
    assert search.policy() == policy
    assert search.optimizer.iterations.numpy() == 2
    search.fit(images(4), np.arange(4) % 3, verbose=0)
    assert np.isfinite(search(images())).all()


@pytest.mark.parametrize("name", NAMES)
def test_students_are_of_the_policy_and_methods(release, name):
    policy = gmpq.BitwidthPolicy.load(release / f"{name}.policy.json")
    student = keras.models.load_model(release / f"{name}.student.keras")
    methods = dict(
        zip(("input_quantizer", "kernel_quantizer"), name.split("_", 1), strict=True)
    )
    fresh = gmpq.quantize_model(float_model(), policy, **methods)
    assert [type(v) for v in fresh.layers] == [type(v) for v in student.layers]
    assert [v.shape for v in fresh.weights] == [v.shape for v in student.weights]
    fresh.set_weights(student.get_weights())
    np.testing.assert_array_equal(fresh(images()), student(images()))
    for layer in filter(lambda v: v.name in policy.layers, student.layers):
        bits = policy[layer.name]
        quantizer = layer.kernel_quantizer
        codes = quantizer.codes(layer.kernel)
        assert quantizer.bits == (bits.weight_bits,)
        assert np.abs(codes).max() <= 2 ** (bits.weight_bits - 1) - 1
        assert quantizer.method == methods["kernel_quantizer"]
        assert layer.input_quantizer.method == methods["input_quantizer"]


@pytest.mark.parametrize("name", NAMES)
def test_backups_are_restored(release, name):
    search = dict(searches())[name]
    backup = EpochBackup(release / f"{name}.backup.npz", writes=False)
    assert backup.epoch == 1
    backup.set_model(search)
    backup.on_train_begin()
    check_outputs(search(images()), release, f"{name}.search")
    saved = keras.models.load_model(release / f"{name}.search.keras")
    for ours, theirs in zip(search.variables, saved.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)
    for of in ("optimizer", "importance_optimizer"):
        for ours, theirs in zip(
            getattr(search, of).variables, getattr(saved, of).variables, strict=True
        ):
            np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)
