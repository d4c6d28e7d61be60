"""Kinds of layers that users bring: what is known of them, and what stays as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import gmpq_tf as gmpq
from gmpq_tf.graph import GraphError, activation_name, read_graph
from gmpq_tf.layer_kinds import Role, names
from gmpq_tf.quantizers import InputQuantizer
from gmpq_tf.transform.rewrite import clone_layer, copy_weights, rebuild

IDENTITY_KINDS = names(Role.IDENTITY)  # layers that change nothing in inference
IMAGE = (8, 8, 3)
X = np.random.default_rng(0).uniform(0, 255, (4, *IMAGE)).astype("float32")
ARGUMENTS = {
    "ActivityRegularization": {"l2": 0.1},
    "AugMix": {"value_range": (0, 255)},
    "GaussianNoise": {"stddev": 0.5},
    "RandAugment": {"value_range": (0, 255)},
    "RandomColorJitter": {"value_range": (0, 255), "brightness_factor": 0.5},
    "RandomElasticTransform": {"factor": 1.0, "scale": 1.0},
    "RandomErasing": {"factor": 1.0},
    "RandomFlip": {"mode": "horizontal_and_vertical"},
    "RandomGaussianBlur": {"factor": 1.0, "sigma": 1.0},
    "RandomHue": {"factor": 0.5, "value_range": (0, 255)},
    "RandomPosterization": {"factor": 2},
    "RandomShear": {"x_factor": 0.5},
    "RandomTranslation": {"height_factor": 0.5, "width_factor": 0.5},
    "RandomZoom": {"height_factor": 0.5},
}
UNCHANGED = ("Identity", "ActivityRegularization")
OF_PAIRS = ("CutMix", "MixUp")  # of images and labels at once: in no functional model
RANKS = {"SpatialDropout1D": 3, "SpatialDropout3D": 5}


def make(kind):
    default = {} if kind in UNCHANGED else {"factor": 0.5}
    default = {"rate": 0.5} if "Dropout" in kind else default
    return getattr(layers, kind)(**ARGUMENTS.get(kind, default))


def head(x):
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    return layers.Dense(2, name="dense")(layers.Flatten()(x))


def student_of(model, bits=8):
    return gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, bits, bits))


def rebuilt(model):
    graph = read_graph(model)
    copy = rebuild(graph, "copy", clone_layer)
    copy_weights(graph, copy)
    return copy


@pytest.mark.parametrize("kind", sorted(IDENTITY_KINDS - {*OF_PAIRS}))
def test_layers_that_change_nothing_in_inference_are_those_of_keras(kind):
    if not hasattr(layers, kind):
        pytest.skip("a newer release of Keras has it")
    layer = make(kind)
    x = X[:, 0] if RANKS.get(kind) == 3 else X
    x = x[:, None] if RANKS.get(kind) == 5 else x
    np.testing.assert_array_equal(layer(x, training=False), x) if (
        kind not in UNCHANGED
    ) else np.testing.assert_array_equal(layer(x), x)
    if kind not in UNCHANGED:
        drawn = [np.asarray(layer(x, training=True)) for _ in range(3)]
        assert any(not np.array_equal(y, x) for y in drawn)


def test_no_random_layer_of_keras_is_forgotten():
    """Those that are left out change images in inference, too."""
    named = {n for n in dir(layers) if n.startswith(("Random", "SpatialDropout"))}
    assert named - IDENTITY_KINDS == {"RandomCrop"}


def test_augmentation_has_no_quantizers_around_it():
    augment = keras.Sequential(
        [layers.RandomFlip(), keras.Sequential([layers.RandomContrast(0.3)])]
    )
    inputs = keras.Input(IMAGE)
    x = layers.Rescaling(1 / 255)(augment(inputs))
    student = student_of(keras.Model(inputs, head(layers.GaussianNoise(0.1)(x))))
    plain = keras.Input(IMAGE)
    expected = student_of(keras.Model(plain, head(layers.Rescaling(1 / 255)(plain))))
    count = [
        sum(isinstance(layer, InputQuantizer) for layer in model.layers)
        for model in (student, expected)
    ]
    assert count[0] == count[1]
    gmpq.calibrate(student, [X])
    first = np.asarray(student(X, training=False))
    np.testing.assert_array_equal(student(X, training=False), first)
    assert not np.array_equal(student(X, training=True), first)


ACTIVATIONS = [
    (None, "linear"),
    (layers.ReLU(), "relu"),
    (layers.ReLU(6), "relu6"),
    (layers.Activation(layers.ReLU()), "relu"),
    (tf.nn.relu, "relu"),
    (tf.nn.relu6, "relu6"),
    (ops.relu6, "relu6"),
    (tf.nn.silu, "silu"),
    (keras.activations.swish, "silu"),
    (tf.nn.softmax, "softmax"),
    (layers.Softmax(), "softmax"),
    (layers.Softmax(axis=1), "Softmax"),
    (layers.ReLU(1.0), "ReLU"),
    (layers.ReLU(threshold=0.1), "ReLU"),
    (layers.LeakyReLU(), "LeakyReLU"),
]


def relu(x):
    """Not what its name says."""
    return ops.maximum(x, 0.3 * x)


@pytest.mark.parametrize(("activation", "name"), ACTIVATIONS)
def test_activations_have_one_name(activation, name):
    assert activation_name(activation) == name


def test_an_own_function_is_not_taken_for_one_of_keras():
    assert activation_name(relu) == f"{__name__}.relu"
    assert activation_name(lambda x: x).endswith("<lambda>")


def prelu():
    layer = layers.PReLU(shared_axes=[1, 2])
    layer.build((None, 8, 8, 4))
    layer.alpha.assign(np.full((1, 1, 4), 0.4))
    return layer


@pytest.mark.quick_rows(7)
@pytest.mark.parametrize(
    "activation",
    [a for a, _ in ACTIVATIONS if a is not None] + [relu, lambda x: x * 2, prelu],
)
@pytest.mark.parametrize("where", ["inside", "after"])
def test_students_compute_any_activation(activation, where):
    activation = prelu() if activation is prelu else activation
    inputs = keras.Input(IMAGE)
    inside = activation if where == "inside" else None
    x = layers.Conv2D(4, 3, padding="same", activation=inside)(inputs)
    if where == "after":
        x = layers.Activation(activation)(x)
    model = keras.Model(inputs, head(x))
    student, x = student_of(model), X / 255
    gmpq.calibrate(student, [x])
    expected = np.asarray(model(x))
    error = np.abs(np.asarray(student(x)) - expected).max()
    assert error < 0.04 * np.abs(expected).max()


def test_fused_activations_are_kept_in_their_layers(tmp_path):
    inputs = keras.Input(IMAGE)
    x = layers.Conv2D(4, 3, activation=layers.ReLU(6.0), name="a")(inputs)
    x = layers.Conv2D(4, 3, activation=tf.nn.relu, name="b")(x)
    student = student_of(keras.Model(inputs, head(x)))
    names = [layer.name for layer in student.layers]
    assert not any("activation" in name for name in names)
    student.save(tmp_path / "s.keras")
    again = keras.models.load_model(tmp_path / "s.keras")
    assert activation_name(again.get_layer("a").activation) == "relu6"
    np.testing.assert_array_equal(again(X), student(X))


def test_lambda_layers_are_rebuilt():
    inputs = keras.Input(IMAGE)
    x = layers.Lambda(lambda x, by: x / by, arguments={"by": 255.0}, name="scale")(
        inputs
    )
    model = keras.Model(inputs, head(x))
    np.testing.assert_allclose(rebuilt(model)(X), model(X), rtol=1e-5)


def test_all_functions_of_a_lambda_are_kept_and_nothing_is_listed(monkeypatch):
    """A configuration would hold code for the shape, and a list of each argument."""
    monkeypatch.delattr(layers.Lambda, "get_config")
    by = np.full(IMAGE, 255.0, "float32")
    inputs = keras.Input(IMAGE)
    layer = layers.Lambda(
        lambda x, by: x / by,
        output_shape=lambda shape: shape,
        mask=lambda x, mask: ops.any(x > 0, axis=(2, 3)),
        arguments={"by": by},
        name="scale",
    )
    model = keras.Model(inputs, head(layer(inputs)))
    copy = rebuilt(model)
    np.testing.assert_array_equal(copy(X), model(X))
    mine, its = copy.get_layer("scale"), model.get_layer("scale")
    assert mine.compute_output_shape((4, *IMAGE)) == (4, *IMAGE)
    np.testing.assert_array_equal(mine.compute_mask(X), its.compute_mask(X))
    assert mine.arguments["by"] is by


class OwnNames(layers.Layer):
    """A block that names itself, and whose configuration does not say how."""

    def __init__(self, units, block=0, **kwargs):
        kwargs.pop("name", None)
        super().__init__(name=f"block_{block}_0", **kwargs)
        self.units, self.block = units, block
        self.inner = layers.Dense(units, name=f"block_{block}_inner")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return ops.relu(self.inner(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class NoName(OwnNames):
    """Forgets the name altogether."""

    def get_config(self):
        return {"units": self.units, "block": self.block}


@pytest.mark.parametrize("block", [OwnNames, NoName])
def test_custom_layers_that_rename_themselves(block):
    inputs = x = keras.Input(IMAGE)
    for number in range(2):
        x = block(4, number)(x)
    model = keras.Model(inputs, head(x))
    np.testing.assert_allclose(rebuilt(model)(X), model(X), rtol=1e-5)
    student = student_of(model)
    assert {"block_0_0", "block_1_0"} <= {layer.name for layer in student.layers}
    np.testing.assert_array_equal(
        student.get_layer("block_1_0").inner.kernel,
        model.get_layer("block_1_0").inner.kernel,
    )


def test_an_own_class_called_as_one_of_keras_is_not_taken_for_it():
    class Flatten(layers.Layer):
        def call(self, x):
            return x + 1

    inputs = keras.Input((4,))
    graph = read_graph(keras.Model(inputs, Flatten()(inputs)))
    assert graph.calls[0].kind == f"{__name__}.Flatten"


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool", "float64", "float16"])
def test_inputs_of_other_types_become_floats(dtype):
    inputs = keras.Input(IMAGE, dtype=dtype)
    x = layers.Rescaling(1 / 255)(layers.RandomFlip()(inputs))
    model = keras.Model(inputs, head(layers.ZeroPadding2D()(x)))
    data = (X > 99) if dtype == "bool" else X.astype(dtype)
    copy = rebuilt(model)
    assert copy.inputs[0].dtype == "float32"
    np.testing.assert_allclose(
        copy(data, training=False), model(data, training=False), rtol=1e-2, atol=1e-3
    )
    student = student_of(model)
    gmpq.calibrate(student, [data])
    expected = np.asarray(model(data, training=False), "float32")
    error = np.abs(np.asarray(student(data, training=False)) - expected).max()
    assert error < 0.05 * np.abs(expected).max()


def test_bytes_of_a_camera_are_the_codes_of_the_input():
    inputs = keras.Input(IMAGE, dtype="uint8")
    x = ops.cast(layers.MaxPooling2D(2)(inputs), "float32") / 255.0
    student = student_of(keras.Model(inputs, head(x)))
    data = np.concatenate([X, 0 * X, 0 * X + 255]).astype("uint8")
    gmpq.calibrate(student, [data])
    quantizer = next(q for q in student.layers if isinstance(q, InputQuantizer))
    assert quantizer.step() == pytest.approx(1.0) and quantizer.codes() == (0, 255)


def test_whole_numbers_that_are_computed_with_are_refused_by_name():
    inputs = keras.Input(IMAGE, dtype="uint8")
    x = ops.cast(ops.add(inputs, inputs), "float32")  # 200 + 200 is 144
    model = keras.Model(inputs, head(x))
    with pytest.raises(GraphError, match=r"(?s)of kind Add, which reads uint8.*cast"):
        student_of(model)
    with pytest.raises(GraphError, match="Add"):
        gmpq.PolicySearch(model)
