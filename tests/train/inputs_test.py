import dataclasses
import json

import keras
import numpy as np
import pytest
from absl import flags
from PIL import Image

from gmpq_tf.budget import FILE_BYTES, LATENCY_MS
from gmpq_tf.cost_tables import CostTable
from gmpq_tf.data import DataConfig, DataError, load_dataset
from gmpq_tf.graph import GraphError
from gmpq_tf.limits import Limit
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.flags import define_flags
from gmpq_tf.run.run_config import WorkdirConfig
from gmpq_tf.run.stage import open_stage
from gmpq_tf.train.inputs import (
    check_model,
    data_from_flags,
    file_identity,
    load_float_model,
    load_inputs,
    model_path,
    times_identity,
)
from gmpq_tf.transform import quantize_model


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A workdir whose float model was trained on pixels in -1..1."""
    run = WorkdirConfig(workdir=str(tmp_path))
    data = DataConfig("digits", scaling="-1..1", batch_size=32)
    config = {"data": dataclasses.asdict(data)}
    open_stage(run, "pretrain", config, data.input_scaling().to_config())
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    define_flags(DataConfig)
    return run


def test_data_flags_are_those_of_the_float_model(run):
    flags.FLAGS(["program", "--batch_size=8"])
    data = data_from_flags(run, model=None)
    assert (data.dataset, data.scaling, data.batch_size) == ("digits", "-1..1", 8)


def test_another_model_brings_its_own_data_flags(run):
    flags.FLAGS(["program"])
    assert data_from_flags(run, model="x.keras") == DataConfig()


def test_another_scaling_than_the_models_is_refused(run):
    flags.FLAGS(["program", "--scaling=0..1"])
    with pytest.raises(StageError, match=r"trained with scaling='-1..1'"):
        data_from_flags(run, model=None)


def test_a_missing_float_model_says_what_to_do(run):
    with pytest.raises(StageError, match=r"train\.pretrain.*--model"):
        model_path(run, None)


def test_an_unreadable_model_file_is_named(tmp_path, digits):
    path = tmp_path / "broken.keras"
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match=r"broken\.keras"):
        load_float_model(path, load_dataset(digits))


def network(shape, classes, outputs=1):
    x = inputs = keras.Input(shape)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(x))
    heads = [keras.layers.Dense(classes)(x) for _ in range(outputs)]
    return keras.Model(inputs, heads if outputs > 1 else heads[0])


def test_models_that_do_not_suit_the_images_are_refused(digits):
    dataset = load_dataset(digits)
    check_model(network((8, 8, 1), 10), dataset)
    check_model(network((None, None, 1), 10), dataset)
    with pytest.raises(DataError, match="10 classes"):
        check_model(network((8, 8, 1), 12), dataset)
    with pytest.raises(ValueError, match=r"\(9, 8, 1\).*image_size"):
        check_model(network((9, 8, 1), 10), dataset)
    with pytest.raises(ValueError, match="2 outputs"):
        check_model(network((8, 8, 1), 10, outputs=2), dataset)


def test_identity_changes_with_the_content(tmp_path):
    path = tmp_path / "file"
    path.write_text("a")
    before = file_identity(path)
    path.write_text("b")
    assert file_identity(path) != before
    assert json.dumps(before)


def test_identity_of_a_latency_table_is_that_of_its_times():
    def identity(times, resource=LATENCY_MS, unit="ms"):
        rows = {"conv": np.full((7, 7), times)}
        return times_identity([Limit(CostTable(resource, unit, rows), 9.0)])

    assert identity(1.5) == identity(1.5) != identity(1.75)
    assert identity(1.5, FILE_BYTES, "bytes") is None


def arrows(folder, side=8, number=6):
    """Two classes that a mirror exchanges: bright on the left, or on the right."""
    for label, name in enumerate(("left", "right")):
        (folder / name).mkdir(parents=True)
        for index in range(number):
            pixels = np.full((side, side, 3), 10 * index, np.uint8)
            pixels[
                :, slice(0, side // 2) if label == 0 else slice(side // 2, side)
            ] += 150
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


@pytest.mark.parametrize(
    ("words", "mirrored"),
    [(["--augment=none"], False), (["--augment=None"], False), ([], True)],
)
def test_augmentation_can_be_switched_off(words, mirrored, tmp_path, monkeypatch):
    arrows(tmp_path / "arrows")
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    define_flags(DataConfig)
    common = [f"--dataset={tmp_path / 'arrows'}", "--image_size=8", "--batch_size=4"]
    flags.FLAGS(["program", *common, *words])
    config = data_from_flags(WorkdirConfig(workdir=str(tmp_path)), "x.keras")
    seen = []
    for images, labels in load_dataset(config).train(0, 4):
        left = np.asarray(images)[:, :, :4].mean((1, 2, 3))
        right = np.asarray(images)[:, :, 4:].mean((1, 2, 3))
        seen.extend((left > right) == (np.asarray(labels) == 0))
    assert all(seen) != mirrored


def test_a_recorded_augmentation_is_inherited_and_goes_on(tmp_path, monkeypatch):
    data = load_dataset(DataConfig("digits", augment="none")).config
    run = WorkdirConfig(workdir=str(tmp_path))
    config = {"data": dataclasses.asdict(data)}
    open_stage(run, "pretrain", config, data.input_scaling().to_config())
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    define_flags(DataConfig)
    flags.FLAGS(["program"])
    assert data_from_flags(run, None).augment == "none"


def test_what_is_no_float_model_is_told_apart(tmp_path):
    run = WorkdirConfig(workdir=str(tmp_path))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"0")
    with pytest.raises(ValueError, match="a SavedModel"):
        model_path(run, str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"built-in name.*pretrain --model=resnet8"):
        model_path(run, "resnet8")
    with pytest.raises(ValueError, match=r"nowhere\.keras', which does not exist"):
        model_path(run, "nowhere.keras")


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("shape", [(8, 6, 1), (8, 6, 3), (None, None, 1)])
def test_images_are_read_as_the_float_model_reads_them(mode, shape, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(5):
            image = Image.fromarray(np.full((8, 6, 3), 40 * index, np.uint8))
            image.convert(mode).save(tmp_path / name / f"{index}.png")
    keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(2, 3),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    ).save(tmp_path / "m.keras")
    size = None if shape[0] else (8, 6)
    config = DataConfig(str(tmp_path), image_size=size, batch_size=2)
    model, dataset = load_inputs(tmp_path / "m.keras", config)
    assert dataset.input_shape == (8, 6, shape[2])
    model(next(iter(dataset.train(0, 1)))[0])
    stored = 1 if mode == "L" else 3
    said = capsys.readouterr().out
    assert ("Images are read as" in said) == (stored != shape[2])
    # What was recorded reads them so again, without the model.
    recorded = DataConfig(**dataclasses.asdict(dataset.config))
    assert load_dataset(recorded).input_shape == (8, 6, shape[2])


def test_the_advice_on_a_wrong_shape_gives_the_flags(digits):
    dataset = load_dataset(digits)
    with pytest.raises(ValueError, match=r"Set --image_size=9x8 --channels=1"):
        check_model(network((9, 8, 1), 10), dataset)
    with pytest.raises(ValueError, match=r"Set --image_size=8 --channels=3"):
        check_model(network((8, 8, 3), 10), dataset)
    with pytest.raises(ValueError, match=r"1 or 3 channels"):
        check_model(network((8, 8, 4), 10), dataset)


def test_a_size_of_height_and_width_survives_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    define_flags(DataConfig)
    run = WorkdirConfig(workdir=str(tmp_path))
    for word, size in (("32x24", (32, 24)), ("32,24", (32, 24)), ("9x9", 9), ("7", 7)):
        flags.FLAGS(["program", f"--image_size={word}"])
        assert data_from_flags(run, "x.keras").image_size == size
    with pytest.raises(flags.Error, match="32x24"):
        flags.FLAGS(["program", "--image_size=1x2x3"])
    flags.FLAGS.unparse_flags()
    data = load_dataset(DataConfig("digits", image_size=(8, 6))).config
    config = {"data": dataclasses.asdict(data)}
    open_stage(run, "pretrain", config, data.input_scaling().to_config())
    flags.FLAGS.image_size = None
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    define_flags(DataConfig)
    flags.FLAGS(["program"])
    assert data_from_flags(run, None).image_size == (8, 6)


def test_a_quantized_model_is_no_float_model(float_file, digits, tmp_path):
    """Its grids would be rounded once more, in the search and in the student."""
    model = keras.models.load_model(float_file)
    student = quantize_model(model, BitwidthPolicy.uniform(model, 8, 8))
    student.save(tmp_path / "student.keras")
    with pytest.raises(GraphError, match="quantized already"):
        load_inputs(tmp_path / "student.keras", digits)
