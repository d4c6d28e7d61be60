"""The commands on a model of one output and data of two classes."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from gmpq_tf.data import DataConfig, load_dataset
from gmpq_tf.train.finetune import FinetuneConfig, finetune
from gmpq_tf.train.inputs import check_model
from gmpq_tf.train.pretrain import PretrainConfig, pretrain
from gmpq_tf.train.search import SearchConfig, search

PIL = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def dark_or_bright(tmp_path_factory):
    """A folder of grey images of 8 x 8: the second class is the brighter one."""
    root = tmp_path_factory.mktemp("two")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (root / name).mkdir()
        for number in range(24):
            pixels = rng.integers(0, 100, (8, 8, 3)) + 150 * label
            image = PIL.fromarray(pixels.astype("uint8"))
            image.save(root / name / f"{number}.png")
    return DataConfig(str(root), image_size=8, batch_size=16, validation_size=0.5,
                      augment="none", scaling="0..1")  # fmt: skip


def model_of(units, activation):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    for name in ("first", "middle"):
        x = keras.layers.Conv2D(4, 3, activation="relu", name=name)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(units, activation, name="last")(x)
    model = keras.Model(inputs, outputs, name="small")
    model.get_layer("first").kernel.assign(np.full((3, 3, 3, 4), 1 / 27))
    model.get_layer("middle").kernel.assign(np.full((3, 3, 4, 4), 1 / 36))
    model.get_layer("last").kernel.assign(np.full((4, units), 2.5))
    model.get_layer("last").bias.assign(np.full(units, -5.0))  # brightness 0.5
    return model


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_whole_way(dark_or_bright, quiet, tmp_path, activation):
    path = tmp_path / "one.keras"
    model_of(1, activation).save(path)
    run, data = dataclasses.replace(quiet, jit_compile=False), dark_or_bright
    recipe = {"learning_rate": 1e-4, "optimizer": "adam"}
    stage = pretrain(PretrainConfig(epochs=1, model=str(path), **recipe), data, run)
    assert last_accuracy(stage) > 0.9
    stage = search(SearchConfig(epochs=1, learning_rate=0.001), data, run)
    assert (stage.folder / "policy.json").exists()
    config = FinetuneConfig(
        epochs=2, statistics_images=0, policy="uniform:8,8", learning_rate=1e-4
    )
    assert last_accuracy(finetune(config, data, run)) > 0.9


def last_accuracy(stage):
    lines = (stage.folder / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["val_accuracy"]


def test_sigmoids_of_independent_labels_are_refused_with_the_remedy(dark_or_bright):
    dataset = load_dataset(dark_or_bright)
    check_model(model_of(1, "sigmoid"), dataset)
    check_model(model_of(1, None), dataset)
    check_model(model_of(2, "softmax"), dataset)
    check_model(model_of(2, None), dataset)
    with pytest.raises(ValueError, match="2 sigmoids, which are independent labels"):
        check_model(model_of(2, "sigmoid"), dataset)
    with pytest.raises(ValueError, match="one output for each class"):
        check_model(model_of(3, None), dataset)
