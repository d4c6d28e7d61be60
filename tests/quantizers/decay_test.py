"""Weight decay leaves steps and ranges as they are, to the bit."""

from importlib.util import find_spec

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

import gmpq_tf as gmpq
from gmpq_tf.export import tfmot
from gmpq_tf.graph import searchable_names
from gmpq_tf.search.distill import Distiller

X = np.random.default_rng(0).uniform(0, 1, (8, 5, 5, 1)).astype("float32")
Y = np.arange(8) % 3
RATE, DECAY, STEPS = 0.1, 0.5, 3

OPTIMIZERS = {
    "AdamW": lambda: optimizers.AdamW(RATE, weight_decay=DECAY),
    "SGD": lambda: optimizers.SGD(RATE, weight_decay=DECAY),
    "momentum": lambda: optimizers.SGD(RATE, momentum=0.9, weight_decay=DECAY),
    "Lion": lambda: optimizers.Lion(RATE, weight_decay=DECAY),
    "clipped": lambda: optimizers.Adam(RATE, weight_decay=DECAY, global_clipnorm=1.0),
    "loss scaling": lambda: optimizers.LossScaleOptimizer(
        optimizers.AdamW(RATE, weight_decay=DECAY)
    ),
    "own list": lambda: excluding(optimizers.AdamW(RATE, weight_decay=DECAY)),
}


def excluding(optimizer):
    """As a user's own call, which replaces what was excluded before."""
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def network():
    keras.utils.set_random_seed(0)
    i = keras.Input((5, 5, 1))
    regularizer = keras.regularizers.L2(0.0)
    x = layers.Conv2D(2, 3, activation="relu", kernel_regularizer=regularizer)(i)
    return keras.Model(i, layers.Dense(3)(layers.Flatten()(x)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = network()
    bits = dict.fromkeys(searchable_names(model), (3, 3))
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy(model.name, bits))
    gmpq.calibrate(student, X)
    path = tmp_path_factory.mktemp("decay") / "student.keras"
    student.save(path)
    return path


def nothing(y_true, y_pred):
    """A loss with zero gradients."""
    return 0.0 * tf.reduce_mean(y_pred)


def compiled(model, optimizer, **kwargs):
    model.compile(optimizer, loss=nothing, jit_compile=False, **kwargs)
    return model


def learned(model):
    return {
        v.path: np.array(v)
        for v in model.trainable_variables
        if "log2" in v.name or "importance" in v.name
    }


def kernels(model):
    return [np.array(v) for v in model.trainable_variables if v.name == "kernel"]


def check(model, train, shrinks=(1 - RATE * DECAY) ** STEPS):
    before, large = learned(model), kernels(model)
    assert any(np.any(value) for value in before.values())
    train()
    after = learned(model)
    assert before.keys() == after.keys()
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)
    for old, new in zip(large, kernels(model), strict=True):
        np.testing.assert_allclose(new, old * shrinks, rtol=1e-5, atol=1e-7)


def fit(model):
    return lambda: model.fit(X, Y, epochs=STEPS, verbose=0)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_student_compiled_as_usual(name, saved):
    student = keras.models.load_model(saved)
    check(student, fit(compiled(student, OPTIMIZERS[name]())))


def test_a_loop_of_ones_own(saved):
    student = keras.models.load_model(saved)
    optimizer = OPTIMIZERS["AdamW"]()

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = nothing(None, student(X, training=True))
        variables = student.trainable_variables
        optimizer.apply_gradients(
            zip(tape.gradient(loss, variables), variables, strict=True)
        )

    def train():
        optimizer.build(student.trainable_variables)
        for _ in range(STEPS):
            step()

    check(student, train)


def test_a_student_inside_another_model(saved):
    student = keras.models.load_model(saved)
    i = keras.Input((5, 5, 1))
    outer = keras.Model(i, student(i))
    check(student, fit(compiled(outer, OPTIMIZERS["AdamW"]())))


def test_a_distiller(saved):
    student = keras.models.load_model(saved)
    distiller = Distiller(student, student, weight=0.0)
    check(student, fit(compiled(distiller, OPTIMIZERS["SGD"]())))


def test_a_search_spares_importances_too():
    search = gmpq.PolicySearch(network(), eta=0.0, zeta=0.0)
    for variable in search.importance_variables:
        variable.assign(np.arange(np.prod(variable.shape)).reshape(variable.shape))
    search.calibrate(X)
    compiled(search, OPTIMIZERS["AdamW"](), importance_optimizer="sgd")
    check(search.hypernet, fit(search))


def test_who_wants_it_can_have_it(saved):
    student = keras.models.load_model(saved)
    optimizer = OPTIMIZERS["SGD"]()
    optimizer.decays_quantizers = True
    before = learned(student)
    fit(compiled(student, optimizer))()
    shrinks = (1 - RATE * DECAY) ** STEPS
    for path, value in learned(student).items():
        np.testing.assert_allclose(value, before[path] * shrinks, rtol=1e-5)


@pytest.mark.skipif(
    find_spec("tensorflow_model_optimization") is None, reason="no extra `tfmot`"
)
def test_a_tf_keras_model(saved):
    student = keras.models.load_model(saved)
    policy = gmpq.BitwidthPolicy(
        student.name, dict.fromkeys(searchable_names(student), (3, 3))
    )
    model = tfmot.quantize_apply(student, policy)
    import tf_keras

    optimizer = tf_keras.optimizers.AdamW(RATE, weight_decay=DECAY)
    model.compile(optimizer, loss=nothing)
    before = {v.name: v.numpy() for v in model.trainable_variables}
    model.fit(X, Y, epochs=STEPS, verbose=0)
    for variable in model.trainable_variables:
        shrinks = 1.0 if "log2" in variable.name else (1 - RATE * DECAY) ** STEPS
        wanted = before[variable.name] * np.float32(shrinks)
        np.testing.assert_allclose(variable, wanted, rtol=1e-5, err_msg=variable.name)
