import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from gmpq_tf.cost import count_cost
from gmpq_tf.data import load_dataset
from gmpq_tf.policy import BitwidthPolicy, PolicyError
from gmpq_tf.run import loop
from gmpq_tf.run.errors import StageError
from gmpq_tf.train import snapping
from gmpq_tf.train.finetune import FinetuneConfig, choose_policy, finetune
from tests.train.conftest import small_model


def tiny(float_file, **changes):
    options = {"epochs": 2, "calibration_images": 32, "policy": "uniform:3,4"}
    return FinetuneConfig(**{**options, "model": str(float_file), **changes})


def weights_of(stage):
    return keras.models.load_model(stage.folder / "model.keras").get_weights()


@pytest.mark.slow
def test_an_interrupted_run_ends_as_one_that_was_not(
    float_file, digits, quiet, monkeypatch
):
    whole = finetune(tiny(float_file, name="whole", distillation=0.5), digits, quiet)
    save = loop.EpochBackup.on_epoch_end

    def cut(self, epoch, logs=None):
        save(self, epoch, logs)
        raise KeyboardInterrupt

    config = tiny(float_file, name="cut", distillation=0.5)
    for _ in range(2):  # cut after each epoch; then only saving remains
        monkeypatch.setattr(loop.EpochBackup, "on_epoch_end", cut)
        with pytest.raises(KeyboardInterrupt):
            finetune(config, digits, quiet)
    monkeypatch.setattr(loop.EpochBackup, "on_epoch_end", save)
    stage = finetune(config, digits, quiet)
    for a, b in zip(weights_of(whole), weights_of(stage), strict=True):
        np.testing.assert_array_equal(a, b)
    epochs = [json.loads(x)["epoch"] for x in (stage.folder / "metrics.jsonl").open()]
    assert epochs == [0, 1]
    assert not (stage.folder / "backup").exists()


def test_a_student_follows_another_teacher(float_file, digits, quiet, tmp_path):
    """Of one that sees class 3 everywhere, whatever the labels say."""
    teacher = keras.models.load_model(float_file)
    dense = [x for x in teacher.layers if isinstance(x, keras.layers.Dense)][-1]
    dense.kernel.assign(0 * dense.kernel)
    dense.bias.assign(np.where(np.arange(dense.units) == 3, 9.0, 0.0))
    teacher.save(tmp_path / "threes.keras")
    config = tiny(
        float_file,
        epochs=3,
        learning_rate=1e-2,
        distillation=1.0,
        teacher=str(tmp_path / "threes.keras"),
    )
    stage = finetune(dataclasses.replace(config, snap_tolerance=1.0), digits, quiet)
    student = keras.models.load_model(stage.folder / "model.keras")
    images = next(iter(load_dataset(digits).test()))[0]
    assert np.all(np.argmax(student.predict(images, verbose=0), -1) == 3)


@pytest.mark.parametrize("change", [{"classes": 7}, {"side": 9}])
def test_a_teacher_of_other_images_or_classes_is_refused(
    float_file, digits, quiet, tmp_path, change
):
    side, classes = change.get("side", 8), change.get("classes", 10)
    inputs = keras.Input((side, side, 1))
    outputs = keras.layers.Dense(classes)(keras.layers.Flatten()(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "other.keras")
    config = tiny(float_file, distillation=0.5, teacher=str(tmp_path / "other.keras"))
    with pytest.raises(StageError, match=r"other\.keras.*--teacher"):
        finetune(config, digits, quiet)
    assert not (Path(quiet.workdir) / "finetune").exists()


@pytest.mark.slow
def test_a_teacher_may_read_images_of_any_size(float_file, digits, quiet, tmp_path):
    inputs = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(inputs, keras.layers.Dense(10)(x)).save(tmp_path / "any.keras")
    config = tiny(float_file, epochs=1, teacher=str(tmp_path / "any.keras"))
    assert finetune(dataclasses.replace(config, snap_tolerance=1.0), digits, quiet)


def test_without_training_the_student_is_the_calibrated_float_model(
    float_file, digits, quiet
):
    stage = finetune(tiny(float_file, epochs=0, policy="uniform:8,8"), digits, quiet)
    student = keras.models.load_model(stage.folder / "model.keras")
    teacher = keras.models.load_model(float_file)
    x = np.random.rand(16, 8, 8, 1).astype("float32")
    gap = np.abs(student.predict(x, verbose=0) - teacher.predict(x, verbose=0))
    assert gap.max() < 0.05 * np.abs(teacher.predict(x, verbose=0)).max()
    policy = BitwidthPolicy.load(stage.folder / "policy.json")
    assert stage.results()["bit_ops"] == count_cost(teacher, policy).bit_ops


def test_policies_come_from_text_or_file(float_file, quiet, tmp_path):
    model = keras.models.load_model(float_file)

    def choose(**options):
        return choose_policy(tiny(float_file, **options), quiet, model)

    uniform = BitwidthPolicy.uniform(model, 3, 4)
    assert choose(policy="uniform:3,4") == uniform
    path = tmp_path / "policy.json"
    uniform.save(path)
    assert choose(policy=str(path)) == uniform
    renamed = choose(policy=str(path), rename_layers="prefix=net_")
    assert list(renamed) == [f"net_{name}" for name in uniform]
    budget = count_cost(model, uniform).bit_ops
    drawn = choose(policy="random:7", bit_ops_budget=budget)
    assert count_cost(model, drawn).bit_ops <= budget
    assert drawn == choose(policy="random:7", bit_ops_budget=budget)


@pytest.mark.parametrize("policy", ["uniform:3", "uniform", "random", "no.json", None])
def test_other_texts_are_refused_with_the_forms_named(float_file, quiet, policy):
    model = keras.models.load_model(float_file)
    with pytest.raises(PolicyError, match=r"uniform:W,A or random:SEED"):
        choose_policy(tiny(float_file, policy=policy), quiet, model)


def test_a_policy_for_another_model_is_refused(float_file, digits, quiet, tmp_path):
    path = tmp_path / "policy.json"
    BitwidthPolicy("other", {"first": (8, 8), "midle": (3, 3)}).save(path)
    with pytest.raises(PolicyError, match="middle"):
        finetune(tiny(float_file, policy=str(path)), digits, quiet)


def test_a_changed_policy_or_model_is_another_configuration(
    float_file, digits, quiet, tmp_path
):
    finetune(tiny(float_file, epochs=0), digits, quiet)
    with pytest.raises(StageError, match=r"policy\.middle"):
        finetune(tiny(float_file, epochs=0, policy="uniform:3,3"), digits, quiet)
    path = tmp_path / "same.keras"
    path.write_bytes(float_file.read_bytes())
    assert finetune(tiny(path, epochs=0), digits, quiet).finished  # same content


def test_overwrite_starts_again(float_file, digits, quiet):
    finetune(tiny(float_file, epochs=0), digits, quiet)
    again = dataclasses.replace(quiet, overwrite=True)
    other = tiny(float_file, epochs=0, policy="uniform:2,2")
    stage = finetune(other, digits, again)
    bits = BitwidthPolicy.load(stage.folder / "policy.json")["middle"]
    assert (bits.weight_bits, bits.activation_bits) == (2, 2)


def test_nan_in_training_leaves_no_model(float_file, digits, quiet):
    config = tiny(float_file, learning_rate=1e39, optimizer="sgd", schedule="constant")
    with pytest.raises(
        ValueError, match=r"must have finite weights|must stay a finite"
    ):
        finetune(config, digits, quiet)
    assert not list(Path(quiet.workdir).rglob("*.keras"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"distillation": 1.5},
        {"distillation": 0.0, "teacher": "larger.keras"},
        {"temperature": 0.0},
        {"snap_tolerance": 1.1},
        {"calibration_images": 0},
        {"policy": "random:1"},
    ],
)
def test_options_out_of_range_are_named(wrong):
    name = "bit_ops_budget" if "policy" in wrong else next(iter(wrong))
    with pytest.raises(ValueError, match=f"Received: {name}="):
        FinetuneConfig(**wrong)


@pytest.mark.slow
def test_the_rounded_student_is_evaluated_and_printed(
    float_file, digits, quiet, capsys
):
    stage = finetune(tiny(float_file, epochs=1), digits, quiet)
    last = stage.results()["last_epoch"]["val_accuracy"]
    rounded = stage.results()["rounded_accuracy"]
    line = f"val_accuracy {last:.4f} after the last epoch, {rounded:.4f} with biases"
    assert line in capsys.readouterr().out
    student = keras.models.load_model(stage.folder / "model.keras")
    images, labels = [], []
    for x, y in load_dataset(digits).validation():
        images.append(x)
        labels.append(y)
    found = np.argmax(student.predict(np.concatenate(images), verbose=0), axis=-1)
    assert np.mean(found == np.concatenate(labels)) == pytest.approx(rounded)


@pytest.mark.slow
@pytest.mark.parametrize("validation", [True, False])
def test_statistics_of_other_images_stop_the_stage(
    digits, quiet, monkeypatch, validation, tmp_path
):
    """Black images: every BatchNormalization would take all variance for none."""
    model, float_file = small_model(), tmp_path / "small.keras"
    model.get_layer("middle_bn").momentum = 0.5  # its averages follow in few steps
    model.save(float_file)
    if not validation:
        digits = dataclasses.replace(digits, validation_size=0)
    digits = dataclasses.replace(digits, batch_size=32, augment="none")
    black = [np.zeros((32, 8, 8, 1), "float32")]
    config = tiny(
        float_file,
        epochs=4,
        learning_rate=0.03,
        schedule="constant",
        distillation=0.0,  # the float model has learned nothing
        policy="uniform:8,8",
    )
    monkeypatch.setattr(
        snapping,
        "statistics_batches",
        lambda config, dataset: black if config.statistics_images else None,
    )
    with (
        pytest.warns(UserWarning, match="far from those of training: middle_bn"),
        pytest.raises(StageError, match=r"--statistics_images=0.*goes on from there"),
    ):
        finetune(config, digits, quiet)
    folder = Path(quiet.workdir) / "finetune"
    assert not (folder / "model.keras").exists()
    monkeypatch.setattr(loop, "check_space", lambda *_: pytest.fail("trains again"))
    kept = dataclasses.replace(config, statistics_images=0)
    stage = finetune(kept, digits, quiet)
    assert stage.finished
    record = json.loads(stage.record.read_text())
    assert record["config"]["statistics_images"] == 0
    with pytest.raises(StageError, match="statistics_images"):  # finished otherwise
        finetune(config, digits, quiet)
    tolerant = dataclasses.replace(kept, snap_tolerance=1.0)
    assert finetune(tolerant, digits, quiet).finished


@pytest.mark.slow
def test_any_drop_may_be_allowed(float_file, digits, quiet, monkeypatch):
    black = [np.zeros((32, 8, 8, 1), "float32")]
    monkeypatch.setattr(snapping, "statistics_batches", lambda *_: black)
    config = tiny(float_file, epochs=1, snap_tolerance=1.0)
    with pytest.warns(UserWarning, match="far from"):
        assert finetune(config, digits, quiet).finished
