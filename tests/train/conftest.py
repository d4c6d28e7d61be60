"""A small float model of the digits, and short ways to call the stages."""

import keras
import pytest

from gmpq_tf.data import DataConfig
from gmpq_tf.run.run_config import RunConfig


def small_model(classes=10, activation=None):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="first")(x)
    x = keras.layers.Conv2D(6, 3, use_bias=False, name="middle")(x)
    x = keras.layers.BatchNormalization(name="middle_bn")(x)
    x = keras.layers.ReLU(name="middle_relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(classes, activation=activation, name="last")(x)
    return keras.Model(inputs, x, name="small")


@pytest.fixture(scope="session")
def float_file(tmp_path_factory):
    """A trained model would change no test, so this one has random weights."""
    path = tmp_path_factory.mktemp("float") / "small.keras"
    small_model().save(path)
    return path


@pytest.fixture(scope="session")
def digits():
    return DataConfig("digits", batch_size=256)


@pytest.fixture
def quiet(tmp_path):
    return RunConfig(workdir=str(tmp_path / "run"), progress="none")
