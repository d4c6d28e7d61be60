"""Which optimizers and floats a search takes, and what its policy says of them."""

import json

import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.search import PolicySearch

layers = keras.layers
SGD = keras.optimizers.SGD


def classifier():
    x = inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, "softmax", dtype="float32")(x))


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.random((32, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 32)


@pytest.fixture
def restored_policy():
    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)


def run(search, data, optimizer=None, **options):
    search.compile(
        optimizer or SGD(0.05), SGD(0.05), "sparse_categorical_crossentropy",
        jit_compile=False,
    )  # fmt: skip
    return search.fit(*data, batch_size=16, verbose=0, **options)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("eta", [0.0, 10.0])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_weights_move_under_a_global_policy(data, restored_policy, policy, eta):
    """As in float32, or the search is refused; set after the model was made."""
    moved = []
    for name in ("float32", policy):
        keras.utils.set_random_seed(0)
        model = classifier()
        keras.config.set_dtype_policy(name)
        search = PolicySearch(model, eta=eta)
        search.calibrate(data[0])
        before = [np.array(v) for v in search.network_variables]
        try:
            run(search, data, shuffle=False)
        except ValueError as error:
            assert name == "mixed_float16"
            assert "must not compute in float16" in str(error)
            return
        assert type(search.optimizer) is SGD
        changes = [
            np.abs(np.array(v) - b).max()
            for v, b in zip(search.network_variables, before, strict=True)
        ]
        keras.config.set_dtype_policy("float32")
        moved.append(changes)
    clear = np.array(moved[0]) > 1e-4
    assert clear.sum() >= 3
    assert np.all(np.array(moved[1])[clear] > 0.2 * np.array(moved[0])[clear])


def test_models_of_half_floats_train_or_are_refused(data, restored_policy):
    for policy in ("mixed_bfloat16", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        model = classifier()
        keras.config.set_dtype_policy("float32")
        search = PolicySearch(model, eta=0.0)
        search.calibrate(data[0])
        before = np.array(search.hypernet.get_layer("conv").kernel)
        try:
            run(search, data)
        except ValueError as error:
            assert policy == "mixed_float16"
            assert "must not compute in float16" in str(error)
            assert "conv" in str(error)
        else:
            after = np.array(search.hypernet.get_layer("conv").kernel)
            assert np.abs(after - before).max() > 1e-5


def test_layers_set_to_float16_are_refused_by_name_with_the_remedy():
    search = PolicySearch(classifier(), eta=0.0)
    search.hypernet.get_layer("conv").dtype_policy = "mixed_float16"
    with pytest.raises(ValueError, match=r"layers of float16: conv\. .*set_dtype_pol"):
        search.compile(loss="mse")


@pytest.mark.parametrize("which", ["optimizer", "importance_optimizer"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: SGD(0.1, use_ema=True), "use_ema=True"),
        (lambda: SGD(0.1, use_ema=True, ema_overwrite_frequency=2), "use_ema=True"),
        (lambda: SGD(0.1, loss_scale_factor=8.0), "with a loss scale"),
        (lambda: keras.optimizers.LossScaleOptimizer(SGD(0.1)), "with a loss scale"),
    ],
    ids=["ema", "overwriting", "factor", "dynamic"],
)
def test_optimizers_that_would_train_something_else_are_refused(which, make, reason):
    search = PolicySearch(classifier(), eta=0.0)
    with pytest.raises(ValueError, match=rf"Received: {which}=.* {reason}"):
        search.compile(**{which: make()}, loss="mse")


def test_one_optimizer_for_both_is_refused():
    search, one = PolicySearch(classifier(), eta=0.0), SGD(0.1)
    with pytest.raises(ValueError, match="two optimizers"):
        search.compile(one, one, loss="mse")


def test_policy_says_what_made_it(data, tmp_path):
    search = PolicySearch(classifier(), eta=0.0, kernel_quantizer="max_abs")
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 10)
    run(search, data, keras.optimizers.AdamW(schedule, weight_decay=0.01), epochs=3)
    search.policy({"seed": 7}).save(tmp_path / "p.json")
    made_by = json.loads((tmp_path / "p.json").read_text())["made_by"]
    assert made_by["seed"] == 7
    assert made_by["versions"]["gmpq-tf"] == gmpq.__version__
    assert made_by["quantizers"]["kernel_quantizer"] == "max_abs"
    assert made_by["quantizers"]["input_quantizer"] in ("pact", "lsq")
    training = made_by["training"]
    assert (training["epochs"], training["steps"]) == (3, 6)
    assert training["optimizer"]["class"] == "AdamW"
    assert training["optimizer"]["weight_decay"] == 0.01
    assert training["importance_optimizer"]["learning_rate"] == pytest.approx(0.05)
    search.fit(*data, batch_size=48, initial_epoch=3, epochs=4, verbose=0)
    search.fit(*data, batch_size=48, epochs=2, verbose=0)
    training = search.policy().made_by["training"]
    assert (training["epochs"], training["steps"]) == (6, 9)


def test_policy_of_a_search_that_was_never_trained_says_so():
    made_by = PolicySearch(classifier(), eta=0.0).policy().made_by
    assert made_by["training"] == {}
