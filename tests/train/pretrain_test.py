import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

from gmpq_tf.data import DataConfig, DataError, load_dataset
from gmpq_tf.models import build_model
from gmpq_tf.run.errors import StageError
from gmpq_tf.train.pretrain import PretrainConfig, float_model, pretrain


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


def test_image_damaged_in_its_middle_is_named_by_the_training(quiet, tmp_path):
    random = np.random.default_rng(0)
    for index in range(24):
        path = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        if index > 11:  # more of them than are taken for the test split
            content = path.read_bytes()
            path.write_bytes(content[:300] + bytes(40) + content[340:])
    data = DataConfig(
        str(tmp_path / "images"),
        image_size=16,
        batch_size=4,
        scaling="0..255",
        augment="none",
        cache=False,
        validation_size=0,
    )
    options = {"model": "resnet8", "epochs": 2, "learning_rate": 0.01}
    with pytest.raises(DataError, match=r"[ab].\d+\.png"):
        pretrain(PretrainConfig(**options), data, quiet)


def test_names_and_options_that_cannot_be_are_refused(digits, quiet):
    with pytest.raises(ValueError, match="Did you mean 'resnet8'"):
        pretrain(PretrainConfig(model="resnet81", epochs=0), digits, quiet)
    with pytest.raises(ValueError, match="Received: dataset='digts'"):
        pretrain(PretrainConfig(), DataConfig("digts"), quiet)
    with pytest.raises(ValueError, match="weight_decay=-1"):
        PretrainConfig(weight_decay=-1)


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory):
    """Weights of the digits network with random values, for ten classes."""
    model = build_model("digits_cnn", (8, 8, 1), 10)
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(0.1, 1, w.shape) for w in model.weights])
    path = tmp_path_factory.mktemp("weights") / "digits_cnn.weights.h5"
    model.save_weights(path)
    return path


def test_weights_of_a_file_become_the_model(weight_file, digits, quiet, capsys):
    config = PretrainConfig(model="digits_cnn", weights=str(weight_file), epochs=0)
    stage = pretrain(config, digits, quiet)
    assert f"Weights: {weight_file}" in capsys.readouterr().out
    expected = build_model("digits_cnn", (8, 8, 1), 10)
    expected.load_weights(weight_file)
    model = keras.models.load_model(stage.folder / "model.keras")
    for a, b in zip(expected.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    record = json.loads(stage.record.read_text())["config"]
    assert record["weights"]["path"] == str(weight_file)
    assert pretrain(config, digits, quiet).finished
    with pytest.raises(StageError, match="weights"):
        pretrain(dataclasses.replace(config, weights=None), digits, quiet)


def test_a_run_from_before_the_options_goes_on(digits, quiet):
    """Options at their defaults are not recorded, as they were not before they were."""
    config = PretrainConfig(model="digits_cnn", epochs=0)
    record = json.loads(pretrain(config, digits, quiet).record.read_text())["config"]
    assert not {"weights", "weights_channels", "stem", "alpha"} & set(record)


def test_another_number_of_classes_is_said(shared_dir, capsys):
    path = shared_dir / "weights" / "mobilenet_v2_imagenet.weights.h5"
    config = PretrainConfig(model="mobilenet_v2", weights=str(path), epochs=0)
    images = SimpleNamespace(input_shape=(32, 32, 3), num_classes=10)
    model = float_model(config, images)
    printed = capsys.readouterr().out
    assert "Left at a new initialization: head_dense" in printed
    assert "--scaling=-1..1" in printed
    reference = keras.applications.MobileNetV2(weights=None, classifier_activation=None)
    reference.load_weights(path)
    ours, theirs = model.get_layer("head_conv"), reference.get_layer("Conv_1")
    np.testing.assert_array_equal(ours.kernel, theirs.kernel)


def test_options_of_the_model_are_passed_on():
    config = PretrainConfig(model="mobilenet_v2", alpha=0.35, stem="imagenet")
    model = float_model(config, SimpleNamespace(input_shape=(8, 8, 1), num_classes=2))
    assert model.get_layer("stem_conv").strides == (2, 2)
    assert model.get_layer("stem_conv").filters == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "vgg16", "stem": "cifar"}, r"stem is an option of mobilenet_v2"),
        ({"model": "resnet18", "alpha": 0.5}, r"alpha is .*model='resnet18'"),
        ({"model": "a.keras", "weights": "imagenet"}, r"weights is .*'a\.keras'"),
        ({"model": "resnet81", "weights": "imagenet"}, r"Did you mean 'resnet8'"),
        ({"model": "mobilenet_v2", "alpha": 0.0}, r"alpha=0\.0"),
    ],
)
def test_options_that_the_model_lacks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**options)


def test_weights_that_cannot_be_are_refused(digits, quiet):
    for weights, message in (
        ("nowhere.npz", "nowhere.npz"),
        ("imagnet", "Did you mean 'imagenet'"),
    ):
        config = PretrainConfig(model="resnet8", weights=weights, epochs=0)
        with pytest.raises(ValueError, match=message):
            pretrain(config, digits, quiet)
    assert not Path(quiet.workdir, "pretrain").exists()
