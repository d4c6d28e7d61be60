import dataclasses
import json

import keras
import numpy as np
import pytest
from gmpq_tf.export.stage import StageError
from gmpq_tf.train.pretrain import PretrainConfig, pretrain

from gmpq_tf.data import DataConfig, load_dataset


def test_a_trained_file_is_measured_and_copied(float_file, digits, quiet):
    config = PretrainConfig(model=str(float_file), epochs=0)
    stage = pretrain(config, digits, quiet)
    copy = keras.models.load_model(stage.folder / "model.keras")
    original = keras.models.load_model(float_file)
    for a, b in zip(original.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    images, labels = next(
        iter(load_dataset(digits).validation().unbatch().batch(10**6))
    )
    right = np.argmax(original.predict(images, verbose=0), -1) == labels
    assert stage.results()["val_accuracy"] == pytest.approx(np.mean(right))


def test_training_lowers_the_loss_and_records_the_scaling(quiet, digits):
    config = PretrainConfig(epochs=2, model="digits_cnn", learning_rate=0.05)
    data = dataclasses.replace(digits, scaling="-1..1", batch_size=64)
    stage = pretrain(config, data, quiet)
    lines = (stage.folder / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[1] < losses[0]
    record = json.loads(stage.record.read_text())
    assert record["scaling"]["kind"] == "-1..1"
    done = (stage.folder / "model.keras").stat().st_mtime_ns
    assert pretrain(config, data, quiet).finished
    assert (stage.folder / "model.keras").stat().st_mtime_ns == done


def test_another_configuration_is_refused(float_file, digits, quiet):
    pretrain(PretrainConfig(model=str(float_file), epochs=0), digits, quiet)
    other = dataclasses.replace(digits, seed=1)
    with pytest.raises(StageError, match=r"data\.seed: 0 -> 1"):
        pretrain(PretrainConfig(model=str(float_file), epochs=0), other, quiet)


def test_names_and_options_that_cannot_be_are_refused(digits, quiet):
    with pytest.raises(ValueError, match="Did you mean 'resnet8'"):
        pretrain(PretrainConfig(model="resnet81", epochs=0), digits, quiet)
    with pytest.raises(ValueError, match="Received: dataset='digts'"):
        pretrain(PretrainConfig(), DataConfig("digts"), quiet)
    with pytest.raises(ValueError, match="weight_decay=-1"):
        PretrainConfig(weight_decay=-1)
