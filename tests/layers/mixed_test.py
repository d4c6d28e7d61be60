import keras
import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.layers import MIXED_LAYERS, QUANT_LAYERS
from gmpq_tf.quantizers import InputQuantizer, KernelQuantizer

ARGUMENTS = {
    "Conv2D": {"filters": 5, "kernel_size": 3, "padding": "same"},
    "Dense": {"units": 5, "activation": "relu"},
    "Conv1D": {"filters": 5, "kernel_size": 3, "padding": "causal"},
}
# Kinds that are not listed.
DEPTHWISE = {"kernel_size": 3, "strides": 2, "depth_multiplier": 2}
OTHERS = {"filters": 5, "kernel_size": 3, "strides": 2}
X = np.random.default_rng(0).normal(0.5, 1, (2, 8, 8, 3)).astype("float32")
# Operator of TensorFlow -> kinds that are computed with it.
OPERATORS = {
    "Conv2D": ("Conv2D", "Conv1D"),
    "MatMul": ("Dense",),
    "Conv2DBackpropInput": ("Conv2DTranspose", "Conv1DTranspose"),
    "DepthwiseConv2dNative": ("DepthwiseConv2D", "DepthwiseConv1D"),
}
IMPORTANCES = {1: [0.0], 2: [0.3, -0.7], 3: [0.5, -1.0, 0.2]}


def arguments_of(kind):
    return ARGUMENTS.get(kind, DEPTHWISE if KERNEL_KINDS[kind].depthwise else OTHERS)


def shape_of(kind, images=2):
    """Of images, or of lines of as many values."""
    return (images, 64, 3) if "1D" in kind else (images, 8, 8, 3)


def make(classes, kind, weight_bits, activation_bits, signed=False):
    cls = classes[kind]
    layer = cls(
        **arguments_of(kind),
        input_quantizer=InputQuantizer(activation_bits, signed),
        kernel_quantizer=KernelQuantizer(weight_bits, "lsq", cls.shared_axes),
        name="layer",
    )
    layer.build(shape_of(kind))
    layer.kernel_quantizer.fit_steps(layer.kernel)
    for branch, bits in enumerate(layer.input_quantizer.bits):
        layer.input_quantizer.set_branch(branch, 2.0 ** (1 - bits))
    return layer


def mixed(kind, weight_bits=(2, 3, 4), activation_bits=(2, 4)):
    layer = make(MIXED_LAYERS, kind, weight_bits, activation_bits)
    layer.kernel_importance.assign(IMPORTANCES[len(weight_bits)])
    layer.input_importance.assign(IMPORTANCES[len(activation_bits)])
    return layer


def softmax(values):
    powers = np.exp(values)
    return powers / powers.sum()


@pytest.mark.parametrize("kind", sorted(MIXED_LAYERS))
class TestEveryKind:
    def test_one_branch_is_the_quantized_layer_bit_for_bit(self, kind):
        one = make(MIXED_LAYERS, kind, (3,), (4,))
        quant = make(QUANT_LAYERS, kind, 3, 4)
        for name in ("kernel", "bias"):
            getattr(quant, name).assign(getattr(one, name))
        quant.kernel_quantizer.fit_steps(quant.kernel)
        x = X.reshape(shape_of(kind))
        np.testing.assert_array_equal(one(x), quant(x))
        assert not one.kernel_importance.trainable
        assert not one.input_importance.trainable

    def test_equation_5_as_an_explicit_sum(self, kind):
        layer, x = mixed(kind), X.reshape(shape_of(kind))
        pi_w, pi_a = softmax(IMPORTANCES[3]), softmax(IMPORTANCES[2])
        inputs = sum(
            p * np.floor(np.clip(x / s, 0, 2**b - 1) + 0.5) * s
            for p, b, s in zip(pi_a, (2, 4), (0.5, 0.125), strict=True)
        )
        quantizer, kernel = layer.kernel_quantizer, layer.kernel.numpy()
        composed = sum(
            p * quantizer.codes(kernel, i) * quantizer.step(kernel, i)
            for i, p in enumerate(pi_w)
        )
        stock = getattr(keras.layers, kind)(**arguments_of(kind))
        stock.build(x.shape)
        stock.set_weights([composed, layer.bias.numpy()])
        np.testing.assert_allclose(layer(x), stock(inputs), rtol=1e-4, atol=1e-5)

    def test_importances_get_the_gradient_of_the_softmax(self, kind):
        def value(importance):
            layer.kernel_importance.assign(importance)
            return float(tf.reduce_sum(layer(x)))

        layer, x = mixed(kind), X.reshape(shape_of(kind))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x))
        slope = tape.gradient(loss, layer.kernel_importance.value).numpy()
        center = np.array(IMPORTANCES[3])
        differences = [
            (value(center + 0.02 * e) - value(center - 0.02 * e)) / 0.04
            for e in np.eye(3)
        ]
        np.testing.assert_allclose(slope, differences, rtol=0.02, atol=0.02)

    def test_probabilities_and_expected_bits(self, kind):
        layer = mixed(kind)
        pi_w, pi_a = softmax(IMPORTANCES[3]), softmax(IMPORTANCES[2])
        for found, expected in zip(
            layer.branch_probabilities(), (pi_w, pi_a), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        weight_bits, activation_bits = layer.expected_bits()
        assert float(weight_bits) == pytest.approx(pi_w @ [2, 3, 4])
        assert float(activation_bits) == pytest.approx(pi_a @ [2, 4])
        assert (layer.weight_bits, layer.activation_bits) == ((2, 3, 4), (2, 4))

    def test_keras_file_round_trip(self, kind, tmp_path):
        layer, x = mixed(kind), X.reshape(shape_of(kind))
        model = keras.Sequential([keras.Input(x.shape[1:]), layer])
        model.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
        assert type(again.get_layer("layer")) is MIXED_LAYERS[kind]
        np.testing.assert_array_equal(again(x), model(x))

    def test_one_convolution_whatever_the_branches(self, kind):
        name = next(name for name, kinds in OPERATORS.items() if kind in kinds)
        layer = mixed(kind)
        x = X.reshape(shape_of(kind)) if kind != "Dense" else X.reshape(-1, 3)
        graph = tf.function(layer).get_concrete_function(tf.constant(x)).graph
        found = [o.type for o in graph.get_operations()]
        assert found.count(name) == 1

    def test_backward_keeps_nothing_a_branch(self, kind):
        images = tf.TensorSpec(shape_of(kind, 512), tf.float32)
        few = kept_bytes(mixed(kind, (2, 3), (2, 3)), images)
        many_bits = (2, 3, 4, 5, 6, 7, 8)
        many = kept_bytes(make(MIXED_LAYERS, kind, many_bits, many_bits), images)
        assert many == few


def kept_bytes(layer, images):
    """Bytes of activations (8 images or more) that the backward pass reads."""

    def step(x):
        graph = tf.compat.v1.get_default_graph()
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(layer(x)))
        forward = set(graph.get_operations())
        tape.gradient(loss, [v.value for v in layer.trainable_variables])
        backward = set(graph.get_operations()) - forward
        read = {t.ref(): t for op in backward for t in op.inputs if t.op in forward}
        sizes.extend(
            t.dtype.size * (t.shape.num_elements() or 0) for t in read.values()
        )

    sizes: list[int] = []
    tf.function(step, autograph=False).get_concrete_function(images)
    large = [size for size in sizes if size >= 512 * 64]  # activations, not kernels
    assert large
    return sum(large)
