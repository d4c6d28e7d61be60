import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from gmpq_tf.layers import QUANT_LAYERS
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer

IMAGE, LINE, VECTOR = (2, 9, 9, 4), (2, 13, 6), (2, 12)
# class name, arguments, input shape
CASES = {
    "conv": ("Conv2D", {"filters": 6, "kernel_size": 3}, IMAGE),
    "conv_stride_same_relu": (
        "Conv2D",
        {
            "filters": 6,
            "kernel_size": 3,
            "strides": 2,
            "padding": "same",
            "activation": "relu",
        },
        IMAGE,
    ),
    "conv_dilation": (
        "Conv2D",
        {"filters": 6, "kernel_size": 3, "dilation_rate": 2, "padding": "same"},
        IMAGE,
    ),
    "conv_groups": (
        "Conv2D",
        {"filters": 6, "kernel_size": (3, 1), "groups": 2, "use_bias": False},
        IMAGE,
    ),
    "depthwise": ("DepthwiseConv2D", {"kernel_size": 3}, IMAGE),
    "depthwise_stride_multiplier": (
        "DepthwiseConv2D",
        {
            "kernel_size": 3,
            "strides": 2,
            "padding": "same",
            "depth_multiplier": 2,
            "activation": "relu6",
        },
        IMAGE,
    ),
    "depthwise_dilation_no_bias": (
        "DepthwiseConv2D",
        {"kernel_size": 3, "dilation_rate": 2, "use_bias": False},
        IMAGE,
    ),
    "transposed": ("Conv2DTranspose", {"filters": 6, "kernel_size": 3}, IMAGE),
    "transposed_stride_same_relu": (
        "Conv2DTranspose",
        {
            "filters": 6,
            "kernel_size": (3, 4),
            "strides": 2,
            "padding": "same",
            "use_bias": False,
            "activation": "relu",
        },
        IMAGE,
    ),
    "line": ("Conv1D", {"filters": 6, "kernel_size": 3, "use_bias": False}, LINE),
    "line_causal_dilation": (
        "Conv1D",
        {
            "filters": 6,
            "kernel_size": 3,
            "dilation_rate": 4,
            "padding": "causal",
            "activation": "relu",
        },
        LINE,
    ),
    "line_causal_stride": (
        "Conv1D",
        {"filters": 6, "kernel_size": 4, "strides": 2, "padding": "causal"},
        LINE,
    ),
    "line_same_stride_groups": (
        "Conv1D",
        {
            "filters": 6,
            "kernel_size": 5,
            "strides": 2,
            "padding": "same",
            "groups": 3,
        },
        LINE,
    ),
    "line_depthwise": (
        "DepthwiseConv1D",
        {"kernel_size": 3, "depth_multiplier": 2, "strides": 2, "padding": "same"},
        LINE,
    ),
    "line_depthwise_dilation": (
        "DepthwiseConv1D",
        {"kernel_size": 3, "dilation_rate": 2, "use_bias": False},
        LINE,
    ),
    "line_transposed": (
        "Conv1DTranspose",
        {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same"},
        LINE,
    ),
    "dense_on_lines": ("Dense", {"units": 5, "activation": "relu"}, LINE),
    "dense_softmax": ("Dense", {"units": 5, "activation": "softmax"}, VECTOR),
    "dense_no_bias": ("Dense", {"units": 5, "use_bias": False}, VECTOR),
    "dense_on_images": ("Dense", {"units": 5}, IMAGE),
}


@pytest.fixture(params=sorted(CASES))
def case(request):
    kind, arguments, shape = CASES[request.param]
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    return kind, dict(arguments, bias_initializer="normal"), x


def quantizers(kind, bits=4, **kwargs):
    return {
        "input_quantizer": InputQuantizer(bits, True, **kwargs),
        "kernel_quantizer": KernelQuantizer(
            bits, "lsq", QUANT_LAYERS[kind].shared_axes
        ),
    }


def gradients(layer, x):
    with tf.GradientTape() as tape:
        y = layer(x)
        loss = tf.reduce_sum(tf.sin(y))
    return y, tape.gradient(loss, [v.value for v in layer.trainable_variables])


def test_without_quantizers_it_is_the_stock_layer_bit_for_bit(case):
    kind, arguments, x = case
    stock = getattr(layers, kind)(**arguments)
    stock.build(x.shape)
    ours = QUANT_LAYERS[kind](**arguments)
    ours.build(x.shape)
    ours.set_weights(stock.get_weights())
    y, slopes = gradients(ours, x)
    expected, expected_slopes = gradients(stock, x)
    np.testing.assert_array_equal(y, expected)
    for slope, expected_slope in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_array_equal(slope, expected_slope)
    assert ours.compute_output_shape(x.shape) == stock.compute_output_shape(x.shape)


def test_it_is_the_stock_layer_on_quantized_operands(case):
    kind, arguments, x = case
    ours = QUANT_LAYERS[kind](**arguments, **quantizers(kind))
    ours.build(x.shape)
    ours.input_quantizer.set_branch(0, 0.25)
    ours.kernel_quantizer.fit_steps(ours.kernel)
    stock = getattr(layers, kind)(**arguments)
    stock.build(x.shape)
    kernel = ours.kernel_quantizer(tf.convert_to_tensor(ours.kernel)).numpy()
    stock.set_weights([kernel, *([ours.bias] if ours.use_bias else [])])
    operand = np.floor(np.clip(x * 4, -8, 7) + 0.5) / 4
    expected = stock(operand.astype("float32"))
    np.testing.assert_array_equal(ours(x, training=True), expected)
    np.testing.assert_allclose(ours(x), expected, rtol=1e-5, atol=1e-5)


def test_outside_training_sums_are_those_of_integer_kernels(case):
    """Codes are added without rounding; one product with the unit follows."""
    kind, arguments, x = case
    arguments |= {"use_bias": False, "activation": None}
    ours = QUANT_LAYERS[kind](**arguments, **quantizers(kind, bits=8))
    ours.build(x.shape)
    ours.input_quantizer.set_branch(0, 0.013)
    ours.kernel_quantizer.fit_steps(ours.kernel)
    stock = getattr(layers, kind)(**arguments, dtype="float64")
    stock.build(x.shape)
    stock.set_weights([ours.kernel_quantizer.codes(ours.kernel)])
    step = ours.input_quantizer.step()
    codes = np.clip(np.floor(x * (1 / np.float32(step)) + 0.5), -128, 127)
    sums = stock(codes.astype("float64")).numpy()
    unit = np.float32(step) * ours.kernel_quantizer.step(ours.kernel).reshape(-1)
    np.testing.assert_array_equal(ours(x), sums.astype("float32") * unit)


@pytest.mark.quick_rows(9)
def test_gradients_outside_training_are_those_of_training(case):
    """Grad-CAM of a student looks through them."""
    kind, arguments, x = case
    layer = QUANT_LAYERS[kind](**arguments, **quantizers(kind))
    layer.build(x.shape)
    layer.kernel_quantizer.fit_steps(layer.kernel)
    slopes = []
    for training in (False, True):
        inputs = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = layer(inputs, training=training)
            # Sums of a few codes are often 0, where a ReLU has two slopes.
            y = tf.reduce_sum(tf.where(tf.abs(y) > 1e-5, tf.sin(y), 0.0))
        slopes.append(tape.gradient(y, inputs))
    assert np.any(slopes[0])
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantized", [False, True])
def test_keras_file_round_trip(case, quantized, tmp_path):
    kind, arguments, x = case
    options = quantizers(kind) if quantized else {}
    layer = QUANT_LAYERS[kind](**arguments, **options, name="layer")
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    if quantized:
        layer.input_quantizer.set_branch(0, 0.3)
        layer.kernel_quantizer.fit_steps(layer.kernel)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert type(again.get_layer("layer")) is QUANT_LAYERS[kind]
    np.testing.assert_array_equal(again(x), model(x))
    assert [w.shape for w in again.weights] == [w.shape for w in model.weights]


def test_every_variable_of_a_learned_layer_gets_a_gradient(case):
    kind, arguments, x = case
    layer = QUANT_LAYERS[kind](**arguments, **quantizers(kind))
    layer.build(x.shape)
    layer.kernel_quantizer.fit_steps(layer.kernel)
    _, slopes = gradients(layer, x)
    assert len(slopes) == 3 + layer.use_bias  # kernel, range, step
    assert all(np.isfinite(s).all() and np.any(s) for s in slopes)


@pytest.mark.quick_rows(21)
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_outputs_are_those_of_the_stock_layer(case, dtype):
    kind, arguments, x = case
    layer = QUANT_LAYERS[kind](**arguments, **quantizers(kind), dtype=dtype)
    layer.build(x.shape)
    y = layer(x)
    assert y.dtype == getattr(layers, kind)(**arguments, dtype=dtype)(x).dtype
    assert np.isfinite(tf.cast(y, "float32")).all()
