"""APoT kernels, from the paper's equations to the codes in a file."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

import gmpq_tf as gmpq
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.quantizers import KernelQuantizer
from gmpq_tf.quantizers.apot import apot, levels
from gmpq_tf.quantizers.fused import xla_quantizers
from gmpq_tf.quantizers.line_search import KERNEL_FRACTIONS
from tests.quantizers.conformance_test import nearest, sums_of_powers

BITS = range(2, 7)
RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.normal(size=(3, 3, 4, 6)).astype("float32")
X = RANDOM.normal(1, 1, (16, 8, 8, 3)).astype("float32")


def built(bits, kernel=KERNEL):
    layer = KernelQuantizer(bits, "apot")
    layer.build(kernel.shape)
    layer.fit_steps(kernel)
    return layer


@pytest.mark.parametrize("bits", BITS)
def test_levels_are_the_sums_of_one_element_a_set(bits):
    np.testing.assert_array_equal(levels(bits), sums_of_powers(bits))
    assert len(levels(bits)) == 2 ** (bits - 1)
    assert apot.largest_code(bits) == sums_of_powers(bits)[-1] <= 127


@pytest.mark.parametrize("bits", BITS)
def test_ties_and_edges_are_those_of_numpy_in_both(bits):
    scaled = np.arange(-260, 261).astype("float32") / 2
    limit = apot.largest_code(bits)
    found = apot.nearest(bits)(scaled.copy(), np.empty_like(scaled))
    np.testing.assert_array_equal(found, nearest(scaled, sums_of_powers(bits)))
    clipped = tf.clip_by_value(scaled, -limit, limit)[None, :, None]
    np.testing.assert_array_equal(apot.rounded((bits,))(clipped)[0, :, 0], found)


@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_those_of_the_equation(bits):
    """By x: 1 inside. By alpha: sign(x) outside, (q - x) / alpha inside."""
    limit, alpha = apot.largest_code(bits), 1.3
    x, up = RANDOM.normal(size=(2, 400, 1)).astype("float32")
    layer = KernelQuantizer(bits, "apot", (0, 1))
    layer.build(x.shape)
    layer.log2_step.assign(np.full((1, 1, 1), np.log2(alpha / limit)))
    v = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(v)
        q = layer(v)
        loss = tf.reduce_sum(q * up)
    of_x, of_log2 = tape.gradient(loss, [v, layer.log2_step.value])
    inside = np.abs(x) < alpha
    np.testing.assert_array_equal(of_x, up * inside)
    of_alpha = np.where(inside, (q - x) / alpha, np.sign(x))
    # The variable is log2(alpha) but for a constant; LSQ's factor scales its gradient.
    expected = (of_alpha * up).sum() * alpha * np.log(2) / np.sqrt(x.size * limit)
    np.testing.assert_allclose(np.ravel(of_log2), expected, rtol=1e-3)
    step = tf.constant(alpha / limit)
    with tf.GradientTape() as tape:
        tape.watch([v, step])
        values = apot(v, step, bits)
        loss = tf.reduce_sum(values * up)
    of_x, of_step = tape.gradient(loss, [v, step])
    np.testing.assert_allclose(values, q, atol=1e-6)
    np.testing.assert_allclose(of_x, up * inside, rtol=1e-6)
    np.testing.assert_allclose(of_step, (of_alpha * up).sum() * limit, rtol=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_fitted_steps_have_the_least_error_of_all_tried(bits):
    layer, known = built(bits), sums_of_powers(bits)
    base = np.abs(KERNEL).max((0, 1, 2)) / known[-1]

    def error(step):
        codes = nearest(KERNEL / step, known)
        return np.square(codes * step - KERNEL).sum((0, 1, 2))

    least = np.min([error(base * fraction) for fraction in KERNEL_FRACTIONS], axis=0)
    np.testing.assert_allclose(error(layer.step(KERNEL)), least, rtol=1e-4)


def test_kernels_at_the_ends_of_floats():
    scales = np.array([0, 1e-30, 1e-12, 1, 1e12, 1e30], "float32")
    layer = built((2, 4, 6), KERNEL * scales)
    y = np.asarray(layer(KERNEL * scales, probabilities=tf.constant([0.2, 0.3, 0.5])))
    assert np.isfinite(y).all() and not y[..., :2].any()
    for branch in range(3):
        codes = layer.codes(KERNEL * scales, branch)
        assert np.isin(np.abs(codes), sums_of_powers(layer.bits[branch])).all()
        assert np.abs(codes[..., 3:]).any((0, 1, 2)).all()


def test_a_mixture_is_the_weighted_sum_compiled_or_not():
    layer, weights = built(tuple(BITS)), tf.constant([0.1, 0.2, 0.3, 0.1, 0.3])
    expected = sum(
        w * layer.codes(KERNEL, i) * layer.step(KERNEL, i)
        for i, w in enumerate(weights.numpy())
    )
    for compiled in (False, True):
        with xla_quantizers(compiled):
            y = layer(KERNEL, probabilities=weights)
        np.testing.assert_allclose(y, expected, atol=1e-5)


def float_model():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(32, 3, use_bias=False, name="first")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = keras.layers.Conv2D(32, 1, activation="relu", name="pointwise")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="last")(x))


def student_of(model, bits):
    policy = gmpq.BitwidthPolicy.uniform(model, bits, 4, pinned={})
    student = gmpq.quantize_model(model, policy, kernel_quantizer="apot")
    gmpq.calibrate(student, X)
    return student


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "narrow"), [(2, "INT2"), (3, "INT4"), (4, "INT8")])
@pytest.mark.parametrize("storage", ["fast", "smallest"])
def test_exported_codes_are_the_trained_ones(tmp_path, bits, narrow, storage):
    student = student_of(float_model(), bits)
    student.compile("sgd", "mse")
    student.fit(X, RANDOM.normal(size=(16, 4)), verbose=0)
    gmpq.snap_biases(student, X)
    student.save(tmp_path / "m.keras")
    student = keras.models.load_model(tmp_path / "m.keras")
    path = tmp_path / "m.tflite"
    report = export_tflite(student, path, verify_data=X, storage=storage)
    assert all(layer.codes_equal for layer in report.layers)
    np.testing.assert_allclose(TFLiteModel(path).predict(X), student(X), atol=1e-3)
    kinds = kernel_types(path)
    assert narrow in kinds if storage == "smallest" else kinds == {"INT8"}
    if bits == 4:
        assert kinds == {"INT8"}  # codes up to 10 fit no INT4


@pytest.mark.parametrize("bits", [5, 6])
def test_wide_codes_are_exact_in_int8(tmp_path, bits):
    student = student_of(float_model(), bits)
    gmpq.snap_biases(student)
    report = export_tflite(student, tmp_path / "m.tflite", verify_data=X)
    assert all(layer.codes_equal for layer in report.layers)


def kernel_types(path):
    names = {v: k for k, v in vars(schema.TensorType).items()}
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    kernels = [o.inputs[1] for o in graph.operators if len(o.inputs) == 3]
    return {names[graph.tensors[i].type] for i in kernels}


@pytest.mark.slow
def test_it_is_searched():
    space = gmpq.SearchSpace((2, 3, 6), (3, 4), pinned={})
    search = gmpq.PolicySearch(
        float_model(), space, bit_ops_budget=0.02, kernel_quantizer="apot", eta=0.0
    )
    search.compile(loss="mse", jit_compile=False)
    search.fit(X, RANDOM.normal(size=(16, 4)), verbose=0)
    assert set(search.policy()) == {"first", "depthwise", "pointwise", "last"}


def test_seven_and_eight_bits_are_refused_by_name():
    model = float_model()
    message = r"'apot' has not.*first W8, last W8.*bits=8.*6 weight bits or fewer"
    with pytest.raises(gmpq.PolicyError, match=message):
        gmpq.PolicySearch(model, kernel_quantizer="apot")
    with pytest.raises(gmpq.PolicyError, match=r"first W7, depthwise W7.*bits=7"):
        student_of(model, 7)


def test_a_recipe_refuses_it_and_tfmot_computes_it(tmp_path):
    tfmot = pytest.importorskip("gmpq_tf.export.tfmot.fake_quantizers")
    fake = tfmot.KernelFakeQuantizer(4, "apot", (0, 1, 2))
    found = fake._fit(tf.constant(KERNEL), (1, 1, 1, 1, 6))
    layer = built(4)
    np.testing.assert_allclose(found, layer.log2_step, atol=1e-4)
    weights = {"log2_step": layer.log2_step.value, "calibrated": tf.constant(1.0)}
    np.testing.assert_allclose(fake(KERNEL, False, weights), layer(KERNEL), atol=1e-5)
    recipe = pytest.importorskip("gmpq_tf.export.litert_recipe")
    student = student_of(float_model(), 4)
    policy = gmpq.BitwidthPolicy.uniform(float_model(), 4, 4, pinned={})
    with pytest.raises(ValueError, match="'first' with kernel_quantizer='apot'"):
        recipe._check_policy(policy, student)
