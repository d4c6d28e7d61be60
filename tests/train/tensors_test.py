"""Models of tensors through the commands: autoencoders, regression, maps."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from PIL import Image

import gmpq_tf as gmpq
from gmpq_tf.data import DataConfig, DataError, load_dataset
from gmpq_tf.export.command import ExportConfig, export
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.models import build_model
from gmpq_tf.run.run_config import RunConfig, WorkdirConfig
from gmpq_tf.search import RiskConfig
from gmpq_tf.search.finalists import NO_FINALISTS
from gmpq_tf.search.strategies.loss_delta import LossDeltaConfig
from gmpq_tf.task import outputs_of
from gmpq_tf.train.evaluate import EvaluateConfig, describe, evaluate
from gmpq_tf.train.finetune import FinetuneConfig, finetune
from gmpq_tf.train.inputs import check_model, load_inputs
from gmpq_tf.train.pretrain import PretrainConfig, pretrain
from gmpq_tf.train.report import ReportConfig, report
from gmpq_tf.train.search import SearchConfig, search
from gmpq_tf.train.strategies import ChoicesConfig, search_by

L = keras.layers
TRAINING = {"learning_rate": 0.01, "optimizer": "adam", "decay_epochs": ()}


def write(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def arrays(count=48, seed=0):
    """Twelve numbers on a plane of four: what an autoencoder can learn."""
    random = np.random.default_rng(seed)
    plane = np.random.default_rng(9).normal(size=(4, 12))
    return (random.normal(size=(count, 4)) @ plane).astype("float32")


def dense(path, units=12, **options):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((12,), name="numbers")
    for number, width in enumerate((16, 6, 16)):
        x = L.Dense(width, use_bias=False, name=f"dense{number}")(x)
        x = L.ReLU(name=f"relu{number}")(L.BatchNormalization(name=f"bn{number}")(x))
    y = L.Dense(units, name="again", **options)(x)
    keras.Model(inputs, y, name="small_ae").save(path)
    return str(path)


def whole_way(folder, data, model, tuned=1):
    """Pretrain, search without labels, fine-tune, export, evaluate, report."""
    run = RunConfig(workdir=str(folder), progress="none")
    plain = WorkdirConfig(workdir=str(folder), progress="none")
    pretrain(PretrainConfig(model=model, epochs=3, **TRAINING), data, run)
    search_by(
        "loss_delta",
        ChoicesConfig(budget="W4A4", calibration_images=16),
        LossDeltaConfig(images=16),
        NO_FINALISTS,
        data,
        plain,
    )
    finetune(
        FinetuneConfig(epochs=tuned, distillation=0.5, snap_tolerance=1.0, **TRAINING),
        data,
        run,
    )
    file = export(ExportConfig(latency_runs=0), data, plain)
    config = EvaluateConfig(split="test")
    names = ("pretrain", "finetune")
    results = {name: evaluate(config, data, plain, name) for name in names}
    return file, results, report(ReportConfig(), data, plain)


@pytest.mark.slow
def test_an_autoencoder_goes_the_whole_way(tmp_path):
    x = arrays(60)
    write(tmp_path / "data.npz", inputs=x, targets=x)
    data = DataConfig(str(tmp_path / "data.npz"), batch_size=16, loss="mse")
    model = dense(tmp_path / "ae.keras")
    file, results, page = whole_way(tmp_path / "run", data, model)
    dataset = load_dataset(data)
    tested = dataset.splits["test"].images
    for name, result in results.items():
        student = gmpq.load_model(tmp_path / "run" / name / "model.keras")
        error = np.mean((student.predict(tested, verbose=0) - tested) ** 2)
        assert result["loss"] == pytest.approx(error, rel=1e-5)
        assert result["accuracy"] is None and result["images"] == len(tested)
    tuned = results["finetune"]
    found = TFLiteModel(file).predict(tested)
    assert tuned["tflite_loss"] == pytest.approx(
        np.mean((np.asarray(found) - tested) ** 2), rel=1e-5
    )
    assert tuned["twin_loss"] == pytest.approx(tuned["tflite_loss"], rel=1e-6)
    assert tuned["twin_max_error"] == 0 and tuned["compared"] == "numbers, in steps"
    line = describe("finetune", tuned)
    assert "loss of .tflite" in line and "%" not in line
    text = page.read_text(encoding="utf-8")
    assert "Loss against cost" in text and "Loss of the file" in text
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["metric"] == "loss"
    assert summary["rows"][0]["accuracy"] == results["pretrain"]["loss"]
    said = json.loads((tmp_path / "run/finetune/export_report.json").read_text())
    assert said["outputs"][0]["kind"] == "numbers"


@pytest.mark.slow
def test_a_search_trains_importances_by_the_loss(tmp_path):
    x = arrays(40)
    write(tmp_path / "data.npz", inputs=x, targets=x)
    data = DataConfig(str(tmp_path / "data.npz"), batch_size=16, loss="mae")
    run = RunConfig(workdir=str(tmp_path / "run"), progress="none")
    config = SearchConfig(
        model=dense(tmp_path / "ae.keras"),
        epochs=1,
        calibration_images=16,
        risk=RiskConfig(eta=0.0),
        decay_epochs=(),
    )
    looking = dataclasses.replace(config, risk=RiskConfig(eta=1.0))
    with pytest.raises(ValueError, match="--eta=0"):
        search(looking, data, run)
    stage = search(config, data, run)
    (line,) = (stage.folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["task_risk"] > 0
    assert gmpq.BitwidthPolicy.load(stage.folder / "policy.json")


@pytest.mark.slow
def test_regression_is_distilled_as_numbers(tmp_path):
    """Five numbers an example look like scores; the loss says that they are not."""
    x = arrays(40)
    write(tmp_path / "data.npz", inputs=x, targets=x[:, :5])
    data = DataConfig(str(tmp_path / "data.npz"), batch_size=16, loss="huber")
    path = dense(tmp_path / "r.keras", 5)
    model, dataset = load_inputs(tmp_path / "r.keras", data)
    kinds = [(o.kind.name, o.known_from) for o in outputs_of(model)]
    assert kinds == [("numbers", "loss")]
    _, results, _ = whole_way(tmp_path / "run", data, path)
    student = gmpq.load_model(tmp_path / "run/finetune/model.keras")
    tested = dataset.splits["test"]
    off = np.abs(student.predict(tested.images, verbose=0) - tested.labels)
    huber = np.where(off < 1, off**2 / 2, off - 0.5).mean()
    assert results["finetune"]["loss"] == pytest.approx(huber, rel=1e-5)
    assert results["finetune"]["tflite_accuracy"] is None


def unet(path, classes=3, size=16, last=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((size, size, 3), name="image")

    def block(x, width, name, strides=1):
        x = L.Conv2D(width, 3, strides, padding="same", use_bias=False, name=name)(x)
        return L.ReLU(name=f"{name}_relu")(L.BatchNormalization(name=f"{name}_bn")(x))

    top = block(inputs, 8, "down1")
    low = block(block(top, 12, "down2", 2), 12, "middle")
    x = L.UpSampling2D(2, name="up")(low)
    x = block(L.Concatenate(name="skip")([top, x]), 8, "up1")
    y = L.Conv2D(classes, 1, activation=last, name="map")(x)
    keras.Model(inputs, y, name="small_unet").save(path)
    return str(path)


def pictures(root, count=24, size=16, numbers=(0, 1, 2), mode="L"):
    """Dark, middle and bright stripes, and which each pixel is of."""
    random = np.random.default_rng(0)
    for number in range(count):
        mask = np.repeat(random.integers(0, len(numbers), size), size)
        mask = mask.reshape(size, size) if number % 2 else mask.reshape(size, size).T
        pixels = 60 + 60 * mask[..., None] + random.integers(-20, 20, (size, size, 3))
        for folder, values in (("images", pixels), ("masks", np.array(numbers)[mask])):
            (root / folder).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(values.astype("uint8"))
            if folder == "masks" and mode == "P":
                image = image.copy()
                image.putpalette([7, 7, 7, 200, 0, 0, 0, 200, 0])
            image.save(root / folder / f"{number:03}.png")
    return str(root)


@pytest.mark.slow
def test_a_segmentation_goes_the_whole_way(tmp_path):
    data = DataConfig(
        pictures(tmp_path / "data", mode="P"),
        image_size=16,
        batch_size=8,
        augment="flip",
    )
    model = unet(tmp_path / "u.keras")
    file, results, _ = whole_way(tmp_path / "run", data, model)
    images, masks = next(iter(load_dataset(data).test().unbatch().batch(99)))
    assert set(np.unique(masks)) == {0, 1, 2}
    tuned = results["finetune"]
    said = np.asarray(TFLiteModel(file).predict(images.numpy())).argmax(-1)
    masks = masks.numpy()
    assert tuned["tflite_accuracy"] == pytest.approx(np.mean(said == masks))
    shares = [
        np.sum((said == c) & (masks == c)) / np.sum((said == c) | (masks == c))
        for c in range(3)
    ]
    assert tuned["tflite_mean_iou"] == pytest.approx(np.mean(shares))
    assert tuned["twin_agreement"] == 1.0
    assert tuned["compared"].startswith("argmax of 3 classes at each of 16 x 16")
    assert "mean_iou" in describe("finetune", tuned)


def test_images_move_with_their_masks(tmp_path):
    folder = pictures(tmp_path, count=8)
    plain = load_dataset(DataConfig(folder, image_size=16, batch_size=4, seed=3))
    moved = load_dataset(
        DataConfig(folder, image_size=16, batch_size=4, augment="flip", seed=3)
    )
    turned = 0
    for (x, y), (u, v) in zip(plain.train(0, 1), moved.train(0, 1), strict=True):
        for a, b, c, d in zip(*(np.asarray(t) for t in (x, y, u, v)), strict=True):
            if np.array_equal(a, c):
                np.testing.assert_array_equal(b, d)
            else:
                np.testing.assert_array_equal(a[:, ::-1], c)
                np.testing.assert_array_equal(b[:, ::-1], d)
                turned += 1
    assert 0 < turned < 8
    with pytest.raises(DataError, match="'none', 'flip' for images with tensors"):
        load_dataset(DataConfig(folder, image_size=16, augment="flip_crop"))


def test_masks_of_black_and_white_are_yes_and_no(tmp_path):
    folder = pictures(tmp_path / "data", numbers=(0, 255))
    data = DataConfig(folder, image_size=16, batch_size=8)
    path = tmp_path / "u.keras"
    unet(path, 1, last="sigmoid")
    model, dataset = load_inputs(path, data)
    x, y = next(iter(dataset.train(0, 1)))
    assert set(np.unique(y)) == {0, 1} and y.shape == (8, 16, 16, 1)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(
        float(keras.losses.BinaryCrossentropy()(y, model(x))), rel=1e-5
    )


def test_images_may_be_their_own_targets(tmp_path):
    folder = pictures(tmp_path / "data")
    x = inputs = keras.Input((16, 16, 3))
    x = L.Conv2D(3, 3, padding="same", activation="sigmoid")(x)
    keras.Model(inputs, x).save(tmp_path / "again.keras")
    for name, options in (
        (f"{folder}/images", {"image_size": 16}),
        ("digits", {"image_size": 16, "channels": 3}),
    ):
        data = DataConfig(name, batch_size=4, targets="inputs", loss="mae", **options)
        _, dataset = load_inputs(tmp_path / "again.keras", data)
        a, b = next(iter(dataset.train(0, 1)))
        np.testing.assert_array_equal(a, b)
        assert a.shape == (4, 16, 16, 3) and dataset.class_names == ()


def two_outputs(path):
    x = keras.Input((12,), name="numbers")
    y = L.Dense(8, activation="relu", name="shared")(x)
    outputs = {
        "size": L.Dense(2, name="size")(y),
        "kind": L.Dense(3, name="kind")(y),
    }
    keras.Model(x, outputs, name="two").save(path)
    return str(path)


@pytest.mark.slow
def test_several_outputs_have_targets_by_name(tmp_path):
    x = arrays(40)
    kind = np.random.default_rng(0).integers(0, 3, 40)
    write(tmp_path / "d.npz", inputs=x, targets_size=x[:, :2], targets_kind=kind)
    data = DataConfig(str(tmp_path / "d.npz"), batch_size=8, loss=None)
    model = two_outputs(tmp_path / "two.keras")
    _, results, _ = whole_way(tmp_path / "run", data, model)
    student = gmpq.load_model(tmp_path / "run/finetune/model.keras")
    tested = load_dataset(data).splits["test"]
    said = student.predict(tested.images, verbose=0)
    error = np.mean((said["size"] - tested.labels["size"]) ** 2)
    shares = said["kind"] - np.log(np.exp(said["kind"]).sum(-1, keepdims=True))
    rows = np.arange(len(tested.images))
    error -= shares[rows, tested.labels["kind"]].mean()
    assert results["finetune"]["loss"] == pytest.approx(error, rel=1e-4)
    assert results["finetune"]["twin_loss"] == pytest.approx(
        results["finetune"]["tflite_loss"], rel=1e-6
    )


@pytest.mark.slow
def test_the_autoencoder_of_mlperf_tiny_goes_the_whole_way(tmp_path, shared_dir):
    """ad01: 640 numbers, ten dense layers; the data has eight directions."""
    random = np.random.default_rng(0)
    x = random.normal(size=(600, 8)) @ random.normal(size=(8, 640)) / 8
    write(tmp_path / "d" / "a.npz", inputs=x[:300], targets=x[:300])
    write(tmp_path / "d" / "b.npz", inputs=x[300:], targets=x[300:])
    data = DataConfig(str(tmp_path / "d"), batch_size=32, loss="mse")
    model = str(shared_dir / "weights" / "mlperf_tiny" / "ad01.h5")
    file, results, _ = whole_way(tmp_path / "run", data, model, tuned=3)
    tuned, floats = results["finetune"], results["pretrain"]
    assert (
        file.stat().st_size
        < 0.3
        * 4
        * gmpq.load_model(tmp_path / "run/pretrain/model.keras").count_params()
    )
    assert tuned["twin_loss"] == pytest.approx(tuned["tflite_loss"], rel=1e-6)
    assert tuned["twin_max_error"] == 0
    assert tuned["tflite_loss"] == pytest.approx(tuned["loss"], rel=0.02)
    assert tuned["loss"] < 2 * floats["loss"]


def test_what_does_not_fit_is_refused_before_anything_is_made(tmp_path):
    x = arrays(20)
    write(tmp_path / "d.npz", inputs=x, targets=x[:, :3])
    path = tmp_path / "ae.keras"
    dense(path)
    data = DataConfig(str(tmp_path / "d.npz"), batch_size=4)
    with pytest.raises(ValueError, match=r"targets of \(3,\) for \(12,\)"):
        load_inputs(path, data)
    with pytest.raises(ValueError, match=r"targets of \(8, 8, 1\) for \(12,\)"):
        load_inputs(path, DataConfig("digits", targets="inputs"))
    with pytest.raises(ValueError, match="or for an autoencoder --targets=inputs"):
        load_inputs(path, DataConfig("digits"))
    run = RunConfig(workdir=str(tmp_path / "run"), progress="none")
    with pytest.raises(ValueError, match="Built-in models are classifiers"):
        pretrain(PretrainConfig(model="resnet8"), data, run)
    detector = build_model("ssd_resnet8", (32, 32, 3), 2)
    with pytest.raises(ValueError, match="one with boxes, such as voc0712"):
        check_model(detector, load_dataset(data))
    two_outputs(tmp_path / "two.keras")
    with pytest.raises(ValueError, match="targets_kind, targets_size"):
        load_inputs(tmp_path / "two.keras", data)
    write(tmp_path / "n.npz", inputs=x, targets=np.arange(20) % 4)
    dense(path, 3)
    numbers = DataConfig(str(tmp_path / "n.npz"), batch_size=4)
    with pytest.raises(ValueError, match="targets from 0 to 3 for output"):
        load_inputs(path, numbers)
    dense(path, 1)
    with pytest.raises(ValueError, match="may be classes or amounts"):
        load_inputs(path, numbers)
    with pytest.raises(ValueError, match=r"from 0 to 3 .* Divide masks"):
        load_inputs(path, dataclasses.replace(numbers, loss="bce"))
    kl = DataConfig(str(tmp_path / "d.npz"), batch_size=4, loss="kld")
    dense(path, 3)
    with pytest.raises(ValueError, match="takes probabilities"):
        load_inputs(path, kl)
    assert not (tmp_path / "run").exists()
