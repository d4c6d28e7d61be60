"""The search on degenerate numbers; docs/numerics.md has the rules tested here."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.search import DivergenceError, PolicySearch, StopOnDivergence
from gmpq_tf.search.divergence import not_finite

layers = keras.layers
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ONE_HOT = keras.losses.CategoricalCrossentropy(from_logits=True)
RANDOM = np.random.default_rng(0)
X = RANDOM.random((24, 6, 6, 1)).astype("float32")
Y = RANDOM.integers(0, 3, 24)
JIT = [False, pytest.param(True, marks=pytest.mark.slow)]  # compiling takes seconds
RISKS = ("loss", "task_risk", "complexity_risk", "generalization_risk")


def classifier() -> keras.Model:
    x = inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(3, 3, padding="same", activation="relu", name="first")(x)
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="middle")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="net")


def searching(model=None, jit=False, loss=SPARSE, **options) -> PolicySearch:
    search = PolicySearch(model or classifier(), **{"eta": 10.0, **options})
    search.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.optimizers.SGD(0.5),
        loss=loss,
        jit_compile=jit,
    )
    search.calibrate([X])
    return search


def fitted(search, x=X, y=Y, **kwargs) -> dict:
    options = {"batch_size": 8, "verbose": 0, "shuffle": False, **kwargs}
    return search.fit(x, y, **options).history


def assert_sound(search, history) -> None:
    """Finite risks and variables, and a policy of bits from the space."""
    assert all(np.isfinite(history[key]).all() for key in (*RISKS, "zeta", "p"))
    assert not_finite(search.variables) == []
    assert not_finite(search.optimizer.variables) == []
    for name, bits in search.policy().items():
        assert bits.weight_bits in search.candidates[name][0]
        assert bits.activation_bits in search.candidates[name][1]


def with_pixel(value: float) -> np.ndarray:
    """The images, with one pixel of the second batch replaced."""
    x = X.copy()
    x[10, 2, 3, 0] = value
    return x


def with_label(value: int) -> np.ndarray:
    y = Y.copy()
    y[10] = value
    return y


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("jit", JIT)
@pytest.mark.parametrize(
    ("value", "eta", "risk"),
    [
        (np.nan, 0.0, "not finite: task_risk[.]"),
        (np.nan, 10.0, "task_risk, generalization_risk"),
        (np.inf, 10.0, "generalization_risk"),
    ],
)
def test_pixel_that_is_not_finite_stops_its_step_by_the_risk(value, eta, risk, jit):
    search = searching(eta=eta, jit=jit)
    message = f"epoch 1, step 2; .*{risk}"
    if np.isnan(value) and not jit:  # a fused convolution may turn it into 0
        message += "|after epoch 1 not finite: first/kernel"
    with pytest.raises(DivergenceError, match=message):
        fitted(search, with_pixel(value), callbacks=[StopOnDivergence()])
    with pytest.raises(DivergenceError):
        search.policy()


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("jit", JIT)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_plain_fit_gives_no_policy_after_such_a_pixel(value, jit):
    """Compiled, the gradient of the infinite one is dropped: all variables are finite.

    Validation, which starts the metrics anew, and later finite epochs change nothing.
    """
    search = searching(jit=jit)
    data = tf.data.Dataset.from_tensor_slices((with_pixel(value), Y)).batch(8)
    search.fit(data, verbose=0, validation_data=(X, Y))
    with pytest.raises(DivergenceError):
        search.policy()


def test_infinite_pixel_saturates_where_no_teacher_sees_it():
    """It is the largest code; the student computes as with the end of the range."""
    search = searching(eta=0.0)
    quantizer = search.hypernet.get_layer("first").input_quantizer
    brightest = quantizer.step() * quantizer.codes()[1]
    np.testing.assert_allclose(
        search(with_pixel(np.inf)), search(with_pixel(brightest)), atol=1e-5
    )
    assert_sound(search, fitted(search, with_pixel(np.inf)))


@pytest.mark.slow
@pytest.mark.parametrize("value", [3, -1])
def test_label_out_of_range_on_a_cpu_is_refused_by_keras_before_the_step(value):
    search = searching()
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=rf"label value of {value}"
    ):
        fitted(search, X[8:16], with_label(value)[8:16], callbacks=[StopOnDivergence()])
    assert not_finite(search.variables) == []
    assert search.policy()


@pytest.mark.slow
@pytest.mark.parametrize("value", [3, -1])
def test_label_out_of_range_under_xla_is_a_divergence(value):
    search = searching(jit=True)
    with pytest.raises(DivergenceError, match=r"step 2; .*task_risk.*labels"):
        fitted(search, y=with_label(value), callbacks=[StopOnDivergence()])
    with pytest.raises(DivergenceError):
        search.policy()


@pytest.mark.parametrize("jit", JIT)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sparse_label_that_is_not_finite_is_never_a_class(value, jit):
    search = searching(jit=jit)
    y = Y.astype("float32")
    y[10] = value
    kind = DivergenceError if jit else tf.errors.InvalidArgumentError
    message = "step 2; .*task_risk.*labels" if jit else "label value of"
    with pytest.raises(kind, match=message):
        fitted(search, y=y, callbacks=[StopOnDivergence()])
    if jit:
        with pytest.raises(DivergenceError):
            search.policy()


def test_finite_float_labels_are_the_classes_they_are():
    model = classifier()
    histories = [
        fitted(searching(model), y=Y.astype(dtype)) for dtype in ("float32", "int64")
    ]
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("jit", JIT)
def test_one_hot_row_of_nan_is_a_divergence(jit):
    search = searching(jit=jit, loss=ONE_HOT)
    y = keras.utils.to_categorical(Y, 3)
    y[10] = np.nan
    with pytest.raises(DivergenceError, match=r"step 2; .*task_risk"):
        fitted(search, y=y, callbacks=[StopOnDivergence()])
    with pytest.raises(DivergenceError):
        search.policy()


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("row", [[2.0, 1.0, 0.0], [-1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
def test_one_hot_rows_of_any_sum_are_taken_as_they_are(row):
    """The task loss is `-sum y log p`, of rows that sum to 1 or not."""
    search = searching(loss=ONE_HOT)
    y = keras.utils.to_categorical(Y, 3)
    y[10] = row
    # The first step's output, in training mode, before anything moved.
    logits = np.array(search.hypernet(X, training=True), "float64")
    history = fitted(search, y=y, batch_size=24)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert history["task_risk"][0] == pytest.approx(
        -(y * log_p).sum(-1).mean(), rel=1e-4
    )
    assert_sound(search, history)


@pytest.mark.slow
def test_nan_poisons_the_momentum_which_outlives_restored_weights(tmp_path):
    """Weights alone do not bring a search back; a whole saved model does."""
    search = searching()
    fitted(search)
    search.save(tmp_path / "good.keras")
    good = [np.array(v) for v in search.hypernet.variables]
    fitted(search, with_pixel(np.nan))
    assert not_finite(search.optimizer.variables)
    for variable, value in zip(search.hypernet.variables, good, strict=True):
        variable.assign(value)
    fitted(search)
    with pytest.raises(DivergenceError):
        search.policy()
    loaded = keras.models.load_model(tmp_path / "good.keras")
    assert_sound(loaded, fitted(loaded))


def test_clipnorm_does_not_stop_nan():
    """Keras divides by the norm, which is NaN too: clipping is for large gradients."""
    search = searching()
    optimizers = [keras.optimizers.SGD(0.05, clipnorm=1.0) for _ in range(2)]
    search.compile(*optimizers, loss=SPARSE)
    fitted(search, with_pixel(np.nan))
    assert not_finite(search.variables)
    with pytest.raises(DivergenceError):
        search.policy()


def test_loaded_weights_end_a_divergence(tmp_path):
    search = searching()
    search.save_weights(tmp_path / "good.weights.h5")
    policy = search.policy()
    fitted(search, with_pixel(np.nan))
    search.load_weights(tmp_path / "good.weights.h5")
    assert search.policy() == policy


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e30])
def test_importances_of_1e30_and_extreme_temperatures(temperature):
    """The softmax is 0 and 1 then; ties share; at 1e30 it is even."""
    search = searching(bit_ops_budget=0.02)
    search.set_temperature(temperature)
    layer = search.hypernet.get_layer("middle")
    for values, expected in (
        ([1e30, -1e30, 0.0], [1.0, 0.0, 0.0]),
        ([-1e30, 1e30, 1e30], [0.0, 0.5, 0.5]),
    ):
        layer.kernel_importance.assign(values)
        soft = np.exp(np.array(values) / temperature - max(values) / temperature)
        probabilities, _ = layer.branch_probabilities()
        np.testing.assert_allclose(probabilities, soft / soft.sum(), rtol=1e-5)
        if temperature <= 1:
            np.testing.assert_array_equal(probabilities, expected)
            bits, _ = layer.expected_bits()
            assert float(bits) == np.dot(expected, (2, 3, 4))
    assert_sound(search, fitted(search))


def test_ranges_and_steps_astray_leave_the_search_finite():
    search = searching()
    for name, log2 in (("middle", -140.0), ("head", 200.0)):
        layer = search.hypernet.get_layer(name)
        for variable in (
            layer.input_quantizer.log2_range,
            layer.kernel_quantizer.log2_step,
        ):
            variable.assign(np.full(variable.shape, log2))
    assert_sound(search, fitted(search))


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("what", ["kernel", "channel", "images"])
def test_zeros_leave_the_search_finite(what):
    model = classifier()
    kernel = np.array(model.get_layer("middle").kernel)
    kernel[..., slice(None) if what == "kernel" else 1] = 0
    if what != "images":
        model.get_layer("middle").kernel.assign(kernel)
    search = searching(model)
    assert_sound(search, fitted(search, 0 * X if what == "images" else X))


def test_dead_layer_has_no_attribution_and_the_search_goes_on():
    """All maps are zero, so that R_G is 0, and no gradient reaches the layer before."""
    model = classifier()
    for name in ("middle", "norm"):
        layer = model.get_layer(name)
        layer.set_weights([0 * w for w in layer.get_weights()])
    with pytest.warns(UserWarning, match=r"zero in all calibration data: head/input"):
        search = searching(model)
    before = [np.array(w) for w in search.hypernet.get_layer("first").weights[:2]]
    history = fitted(search)
    assert history["generalization_risk"] == [0.0]
    assert history["rank_distance"] == [0.0]
    assert history["task_risk"][0] == pytest.approx(np.log(3), rel=0.05)
    for old, new in zip(
        before, search.hypernet.get_layer("first").weights, strict=False
    ):
        np.testing.assert_array_equal(old, new)
    assert_sound(search, history)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("images", "batch_size"), [(24, 1), (19, 8), (1, 8)], ids=["one", "last", "single"]
)
def test_small_batches(images, batch_size):
    search = searching()
    assert_sound(search, fitted(search, X[:images], Y[:images], batch_size=batch_size))


def test_batches_of_one_class():
    search = searching()
    assert_sound(search, fitted(search, y=np.zeros_like(Y)))


def test_sample_weights_of_zero_leave_the_risks_that_have_none():
    """Keras weighs the task loss alone; attribution and cost count as ever."""
    search = searching()
    history = fitted(search, sample_weight=np.zeros(24))
    assert history["task_risk"] == [0.0]
    assert history["generalization_risk"][0] > 0
    assert_sound(search, history)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("end", ["least", "most"])
def test_budget_at_an_end_of_the_space(end):
    """Zeta grows no further than its bound; the policy is the one that costs that."""
    model = classifier()
    space = gmpq.SearchSpace()
    pick = min if end == "least" else max
    bits = {n: tuple(map(pick, pair)) for n, pair in space.candidates(model).items()}
    cost = sum(
        gmpq.count_cost(model).layers[i].macs * w * a
        for i, (w, a) in enumerate(bits.values())
    )
    search = searching(model, bit_ops_budget=float(cost), eta=0.0)
    history = fitted(search, epochs=20)
    assert_sound(search, history)
    assert np.abs(float(search.zeta)) <= 1000 * 50
    assert {
        n: (b.weight_bits, b.activation_bits) for n, b in search.policy().items()
    } == bits
