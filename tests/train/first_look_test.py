"""The float model is tried on the images before anything is trained on them."""

import keras
import numpy as np
import pytest
from PIL import Image

from gmpq_tf.data import DataConfig, load_dataset, scale_images
from gmpq_tf.data.scaling import InputScaling
from gmpq_tf.files import read_jsonl
from gmpq_tf.run.run_config import RunConfig
from gmpq_tf.train.finetune import FinetuneConfig, finetune
from gmpq_tf.train.first_look import look
from gmpq_tf.train.pretrain import PretrainConfig, pretrain
from gmpq_tf.train.search import SearchConfig, search

SCALINGS = {
    "0..255": InputScaling("0..255"),
    "0..1": InputScaling("0..1"),
    "-1..1": InputScaling("-1..1"),
    "mean_std": InputScaling("mean_std", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
LEVELS = (60, 160)  # of the pixels of the two classes


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Two classes of plain images that differ in lightness alone."""
    folder = tmp_path_factory.mktemp("shades")
    random = np.random.default_rng(0)
    for level, name in zip(LEVELS, ("dark", "light"), strict=True):
        (folder / name).mkdir()
        for index in range(60):
            pixels = random.integers(level - 40, level + 40, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def classifier(scaling, units=2):
    """Right about the classes where pixels are scaled so: a threshold between them.

    No rescaled image can be on the right sides of both its bounds otherwise.
    """
    low, middle, high = (
        np.float32(scale_images(np.full((1, 1, 1, 3), v, np.uint8), scaling)).mean()
        for v in (LEVELS[0], np.mean(LEVELS).astype(int), LEVELS[1])
    )
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(1, 1, name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(units, name="head")(x))
    steepness = 1 / (high - low)
    model.get_layer("conv").set_weights(
        [
            np.full((1, 1, 3, 1), steepness / 3, "float32"),
            np.float32([-middle * steepness]),
        ]
    )
    head = np.float32([[1.0]]) if units == 1 else np.float32([[-1.0, 1.0]])
    model.get_layer("head").set_weights([head, np.zeros(units, "float32")])
    return model


def data_of(folder, scaling, **options):
    given = {"mean": scaling.mean, "std": scaling.std}
    return DataConfig(
        str(folder),
        image_size=8,
        scaling=scaling.kind,
        batch_size=16,
        **given,
        **options,
    )


@pytest.mark.quick_rows(1)
@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("units", [1, 2])
@pytest.mark.parametrize("wanted", SCALINGS)
def test_another_scaling_that_fits_is_named(wanted, units, shades, capsys):
    model = classifier(SCALINGS[wanted], units)
    for given, scaling in SCALINGS.items():
        before = [v.numpy() for v in model.variables]
        look(model, load_dataset(data_of(shades, scaling)))
        said = capsys.readouterr().out
        assert f"with scaling={given}" in said
        for old, variable in zip(before, model.variables, strict=True):
            np.testing.assert_array_equal(old, variable.numpy())
        if given == wanted:
            assert "100.00 % of 86 training images" in said and "Hint" not in said
        elif "100.00" not in said.splitlines()[0]:
            assert f"--scaling={wanted}" in said or "Hint" in said


@pytest.mark.quick_rows(1)
@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("units", [1, 2])
def test_a_model_that_is_right_but_unsure_gets_the_scaling_it_reads(
    units, tmp_path, capsys
):
    """Without a bias the scale of the pixels changes no decision, but all doubt."""
    side = np.zeros((8, 8, 3))
    side[:, :4], side[:, 4:] = -1, 1
    random = np.random.default_rng(0)
    for sign, name in ((-1, "left"), (1, "right")):
        (tmp_path / name).mkdir()
        for index in range(40):
            pixels = 128 + 50 * sign * side + random.integers(-9, 9, side.shape)
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(tmp_path / name / f"{index}.png")
    inputs = keras.Input((8, 8, 3))
    flat = keras.layers.Flatten()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(units, use_bias=False)(flat))
    column = side.reshape(-1, 1) / side.size  # 0.1 of it: a logit of 10 at 0..255
    kernel = 0.2 * column if units == 1 else np.hstack([-0.1 * column, 0.1 * column])
    model.set_weights([kernel])
    for given, scaling in SCALINGS.items():
        look(model, load_dataset(data_of(tmp_path, scaling, augment="none")))
        said = capsys.readouterr().out
        assert "100.00 %" in said
        hinted = "Hint: with --scaling=0..255 its cross-entropy is 0.0" in said
        assert hinted == (given != "0..255") == ("Hint" in said)


@pytest.mark.parametrize("units", [1, 2])
def test_no_scaling_excuses_a_model_of_other_classes(units, tmp_path, capsys):
    """Folders in another order than the scores: sure and wrong, or else guessing."""
    random = np.random.default_rng(0)
    for name in ("odd", "even"):
        (tmp_path / name).mkdir()
        for index in range(40):
            pixels = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    inputs = keras.Input((8, 8, 3))
    flat = keras.layers.Flatten()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(units, use_bias=False)(flat))
    model.set_weights([random.normal(0, 0.02, (192, units))])
    look(model, load_dataset(data_of(tmp_path, SCALINGS["0..255"])))
    assert "Hint" not in capsys.readouterr().out


def test_no_scaling_is_named_where_none_fits(shades, capsys):
    keras.utils.set_random_seed(1)
    model = classifier(SCALINGS["0..1"])
    model.get_layer("head").set_weights([np.zeros((1, 2)), np.zeros(2)])
    look(model, load_dataset(data_of(shades, SCALINGS["0..1"])))
    assert "Hint" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "search", "finetune"])
def test_each_command_looks_first_and_trains_the_same(
    stage, shades, tmp_path, capsys, monkeypatch
):
    path = tmp_path / "float.keras"
    classifier(SCALINGS["0..255"]).save(path)
    data = data_of(shades, SCALINGS["0..1"])
    commands = {
        "pretrain": (pretrain, PretrainConfig(model=str(path), epochs=0)),
        "search": (search, SearchConfig(model=str(path), epochs=1)),
        "finetune": (
            finetune,
            FinetuneConfig(model=str(path), policy="uniform:8,8", epochs=1),
        ),
    }
    command, config = commands[stage]
    made = []
    for folder in ("looked", "blind"):
        run = RunConfig(workdir=str(tmp_path / folder), progress="none")
        made.append(command(config, data, run))
        said = capsys.readouterr().out
        assert ("Hint: with --scaling=0..255" in said) == (folder == "looked")
        module = command.__module__
        monkeypatch.setattr(f"{module}.look", lambda *_: None)
    if stage != "pretrain":
        looked, blind = (read_jsonl(each.folder / "metrics.jsonl") for each in made)
        assert looked[0]["loss"] == blind[0]["loss"]
    command(config, data, RunConfig(workdir=str(tmp_path / "looked"), progress="none"))
    said = capsys.readouterr().out
    assert "finished already" in said and "training images" not in said
