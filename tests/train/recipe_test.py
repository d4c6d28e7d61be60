import math

import keras
import numpy as np
import pytest

from gmpq_tf.train.recipe import (
    TrainingConfig,
    gives_logits,
    make_loss,
    make_metrics,
    make_optimizer,
    make_schedule,
)


def rate_at(step, config, steps=10):
    schedule = make_schedule(0.1, config, steps)
    return float(schedule(step)) if callable(schedule) else schedule


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.1), (199, 0.1), (200, 0.01), (299, 0.01), (300, 0.001)]
)
def test_step_schedule_falls_at_the_start_of_an_epoch(step, rate):
    config = TrainingConfig(epochs=40, decay_epochs=(20, 30))
    assert rate_at(step, config) == pytest.approx(rate)


def test_cosine_schedule_ends_at_zero():
    config = TrainingConfig(epochs=4, schedule="cosine")
    found = [rate_at(step, config) for step in (0, 10, 20, 40)]
    wanted = [0.05 * (1 + math.cos(math.pi * x)) for x in (0, 0.25, 0.5, 1)]
    assert found == pytest.approx(wanted, abs=1e-8)


def test_constant_schedule_and_no_decay_epochs_keep_the_rate():
    assert rate_at(500, TrainingConfig(schedule="constant")) == 0.1
    assert rate_at(500, TrainingConfig(decay_epochs=())) == 0.1


def test_optimizers_have_the_options_given():
    config = TrainingConfig(schedule="constant", momentum=0.8)
    sgd = make_optimizer("sgd", 0.1, config, 10, weight_decay=0.01)
    assert sgd.momentum == 0.8 and sgd.weight_decay == 0.01
    adam = make_optimizer("adam", 0.1, config, 10)
    assert isinstance(adam, keras.optimizers.Adam) and not adam.weight_decay


def classifier(kind):
    x = inputs = keras.Input((4,))
    x = keras.layers.Dense(3, activation="softmax" if kind == "inside" else None)(x)
    if kind == "layer":
        x = keras.layers.Softmax()(x)
    if kind == "activation":
        x = keras.layers.Activation("softmax")(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("kind", ["logits", "inside", "layer", "activation"])
def test_the_loss_suits_the_output(kind):
    model = classifier(kind)
    assert gives_logits(model) == (kind == "logits")
    x, labels = np.random.rand(5, 4).astype("float32"), np.array([0, 1, 2, 1, 0])
    outputs = np.asarray(model(x), "float64")
    if kind == "logits":
        outputs = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    wanted = -np.log(outputs[np.arange(5), labels]).mean()
    assert float(make_loss(model)(labels, model(x))) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": -1},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"momentum": 1.0},
        {"decay_factor": 0.0},
        {"decay_epochs": (30, 20)},
        {"decay_epochs": (0,)},
    ],
)
def test_options_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=f"Received: {next(iter(wrong))}="):
        TrainingConfig(**wrong)


@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize("column", [False, True])
def test_one_output_tells_two_classes_apart(activation, column):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(1, activation)(inputs))
    logits = np.array([[2.0], [-1.0], [0.3], [-0.2]], "float32")
    odds = 1 / (1 + np.exp(-logits[:, 0]))
    labels = np.array([1, 0, 0, 0])
    wanted = -np.log(np.where(labels, odds, 1 - odds)).mean()
    outputs = logits if activation is None else odds[:, None]
    given = labels[:, None] if column else labels
    assert float(make_loss(model)(given, outputs)) == pytest.approx(wanted, rel=1e-4)
    (accuracy,) = make_metrics(model)
    accuracy.update_state(given, outputs)
    assert float(accuracy.result()) == pytest.approx(0.75)
    assert accuracy.name == "accuracy"
    copy = type(accuracy).from_config(accuracy.get_config())
    copy.update_state(given, outputs)
    assert float(copy.result()) == pytest.approx(0.75)
