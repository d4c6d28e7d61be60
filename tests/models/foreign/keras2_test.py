"""Files of Keras 2, written here as it wrote them, compute what it computed."""

import json

import h5py
import keras
import numpy as np
import pytest
from keras import layers as kl

import gmpq_tf as gmpq
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.models import ModelFileError, load_model

ZEROS = {"class_name": "Zeros", "config": {}}
GLOROT = {"class_name": "GlorotUniform", "config": {"seed": None}}
COMMON = {"trainable": True, "dtype": "float32"}
CONV = {
    "strides": [1, 1],
    "padding": "same",
    "data_format": "channels_last",
    "dilation_rate": [1, 1],
    "groups": 1,
    "activation": "linear",
    "use_bias": True,
    "bias_initializer": ZEROS,
    "bias_regularizer": None,
    "activity_regularizer": None,
    "bias_constraint": None,
}
KERNEL = {
    "kernel_initializer": GLOROT,
    "kernel_regularizer": None,
    "kernel_constraint": None,
}
DEPTHWISE = CONV | {
    "kernel_size": [3, 3],
    "depth_multiplier": 1,
    "depthwise_initializer": GLOROT,
    "depthwise_regularizer": None,
    "depthwise_constraint": None,
}
SEPARABLE = DEPTHWISE | KERNEL | {
    "filters": 4,
    "pointwise_initializer": GLOROT,
    "pointwise_regularizer": None,
    "pointwise_constraint": None,
}  # fmt: skip


def layer(kind, name, source=None, /, **options):
    """A layer as Keras 2 wrote it down; `source` is the layer it reads."""
    inbound = [[[source, 0, 0, {}]]] if isinstance(source, str) else source or []
    config = {"name": name, **COMMON, **options}
    return {
        "class_name": kind,
        "config": config,
        "name": name,
        "inbound_nodes": inbound,
    }


def image(side=6, channels=3):
    shape = {"batch_input_shape": [None, side, side, channels]}
    flags = {"sparse": False, "ragged": False}
    made = layer("InputLayer", "image", **shape, **flags)
    del made["config"]["trainable"]
    return made


def functional(layers, output=None, name="net"):
    output = output or [layers[-1]["name"], 0, 0]
    config = {"name": name, "layers": layers, "input_layers": [["image", 0, 0]]}
    config["output_layers"] = [output]
    return {"class_name": "Functional", "config": config}


def write(path, config, weights, version="2.4.0"):
    """A .h5 file: weights by the name of the layer, in the order of the layers."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = version
        file.attrs["backend"] = "tensorflow"
        root = file.create_group("model_weights")
        names = [
            x.get("name") or x["config"]["name"] for x in config["config"]["layers"]
        ]
        root.attrs["layer_names"] = [name.encode() for name in names]
        for name in names:
            group, stored = root.create_group(name), []
            for index, value in enumerate(weights.get(name, ())):
                stored.append(f"{name}/{index}:0".encode())
                group[stored[-1].decode()] = value
            group.attrs["weight_names"] = stored
    return path


def drawn(*shapes):
    random = np.random.default_rng(0)
    return [random.normal(0, 0.5, shape).astype("float32") for shape in shapes]


def pixels(model):
    random = np.random.default_rng(1)
    return random.normal(0, 1, (2, *model.input_shape[1:])).astype("float32")


def same(loaded, expected):
    """Compares with a model of Keras 3 built of the same weights."""
    images = pixels(loaded)
    found, wanted = loaded(images, training=False), expected(images, training=False)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


CASES = {
    "DepthwiseConv2D": (
        layer("DepthwiseConv2D", "x", "image", **DEPTHWISE),
        kl.DepthwiseConv2D(3, padding="same"),
        [(3, 3, 3, 1), (3,)],
    ),
    "SeparableConv2D": (
        layer("SeparableConv2D", "x", "image", **SEPARABLE),
        kl.SeparableConv2D(4, 3, padding="same"),
        [(3, 3, 3, 1), (1, 1, 3, 4), (4,)],
    ),
    "Conv2DTranspose": (
        layer(
            "Conv2DTranspose",
            "x",
            "image",
            **CONV | KERNEL | {"filters": 4, "kernel_size": [3, 3]},
            output_padding=None,
        ),
        kl.Conv2DTranspose(4, 3, padding="same"),
        [(3, 3, 4, 3), (4,)],
    ),
    "BatchNormalizationV1": (
        layer("BatchNormalizationV1", "x", "image", axis=[3], epsilon=0.01, fused=True),
        kl.BatchNormalization(epsilon=0.01),
        [(3,)] * 4,
    ),
    "SpatialDropout2D": (
        layer("SpatialDropout2D", "x", "image", rate=0.5, noise_shape=None, seed=None),
        kl.SpatialDropout2D(0.5),
        [],
    ),
    "RandomFlip": (
        layer("RandomFlip", "x", "image", mode="horizontal", rng_type="stateful"),
        kl.RandomFlip("horizontal"),
        [],
    ),
    "LeakyReLU": (layer("LeakyReLU", "x", "image", alpha=0.1), kl.LeakyReLU(0.1), []),
    "a name with a slash": (
        layer("LeakyReLU", "a/x", "image", alpha=0.1),
        kl.LeakyReLU(0.1),
        [],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_layer_of_keras_2_is_read(case, tmp_path):
    written, expected, shapes = CASES[case]
    weights = [np.abs(w) for w in drawn(*shapes)]
    name = written["name"]
    path = write(tmp_path / "m.h5", functional([image(), written]), {name: weights})
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, expected(inputs))
    if weights:
        model.set_weights(weights)
    same(load_model(path), model)


def called(function, name, source, **arguments):
    inbound = [[source, 0, 0, {"name": None, **arguments}]]
    return layer("TFOpLambda", name, inbound, function=function)


def test_arithmetic_on_tensors_is_read(tmp_path):
    layers = [
        image(),
        called("math.subtract", "a", "image", y=0.5),
        called("math.truediv", "b", "a", y=4),
        called("__operators__.add", "c", "b", y=3.0),
        called("nn.relu6", "d", "c"),
        called("math.multiply", "e", "d", y=0.25),
        called("math.multiply", "f", "e", y=["b", 0, 0]),
        called("math.subtract", "g", "f", y=["e", 0, 0]),
        called("__operators__.add", "h", "g", y=["a", 0, 0]),
    ]
    loaded = load_model(write(tmp_path / "m.h5", functional(layers), {}))
    x = pixels(loaded)
    b = (x - 0.5) / 4
    e = np.clip(b + 3, 0, 6) * 0.25
    expected = e * b - e + (x - 0.5)
    np.testing.assert_allclose(loaded(x), expected, rtol=1e-5, atol=1e-6)


def inner_model(kind):
    layers = [image(), layer("DepthwiseConv2D", "x", "image", **DEPTHWISE)]
    made = functional(layers, name="inner")
    if kind == "Sequential":
        plain = [{k: x[k] for k in ("class_name", "config")} for x in layers]
        made = {"class_name": kind, "config": {"name": "inner", "layers": plain}}
    return made | {"name": "inner", "inbound_nodes": [[["image", 0, 0, {}]]]}


@pytest.mark.parametrize("kind", ["Functional", "Sequential"])
@pytest.mark.parametrize("last", [True, False])
def test_a_model_inside_is_called_by_its_own_count(kind, last, tmp_path):
    """Keras 2 counted the model's own graph as its first call."""
    layers = [image(), inner_model(kind)]
    output = ["inner", 1, 0]
    if not last:
        inner = [[["inner", 1, 0, {}]]]
        layers.append(layer("ReLU", "end", inner, max_value=None))
        output = None
    weights = drawn((3, 3, 3, 1), (3,))
    config = functional(layers, output)
    loaded = load_model(write(tmp_path / "m.h5", config, {"inner": weights}))
    inputs = keras.Input((6, 6, 3))
    x = kl.DepthwiseConv2D(3, padding="same")(inputs)
    expected = keras.Model(inputs, x if last else kl.ReLU()(x))
    expected.set_weights(weights)
    same(loaded, expected)


def test_a_shared_inner_model_keeps_its_calls_apart(tmp_path):
    inner = inner_model("Functional")
    inner["inbound_nodes"] += [[["act", 0, 0, {}]]]
    layers = [image(), inner, layer("ReLU", "act", [[["inner", 1, 0, {}]]])]
    weights = drawn((3, 3, 3, 1), (3,))
    config = functional(layers, ["inner", 2, 0])
    loaded = load_model(write(tmp_path / "m.h5", config, {"inner": weights}))
    inputs = keras.Input((6, 6, 3))
    twice = kl.DepthwiseConv2D(3, padding="same")
    expected = keras.Model(inputs, twice(kl.ReLU()(twice(inputs))))
    expected.set_weights(weights)
    same(loaded, expected)


REFUSED = {
    "groups": layer("DepthwiseConv2D", "x", "image", **DEPTHWISE | {"groups": 3}),
    "unknown option": layer("ReLU", "x", "image", max_value=None, sharpness=2),
    "hard_sigmoid": layer("Activation", "x", "image", activation="hard_sigmoid"),
    "axis": layer("Softmax", "x", "image", axis=[1, 2]),
    "function": called("image.resize", "x", "image", size=[2, 2]),
    "power": called("math.pow", "x", "image", y=2.0),
    "slicing": layer(
        "SlicingOpLambda",
        "x",
        [["image", 0, 0, {"slice_spec": [0]}]],
        function="__operators__.getitem",
    ),
    "number first": called("math.subtract", "x", "_CONSTANT_VALUE", y=["image", 0, 0]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_translation_is_refused_by_name(case, tmp_path):
    path = write(tmp_path / "m.h5", functional([image(), REFUSED[case]]), {})
    message = r"m\.h5, saved by Keras 2\.4\.0, whose .*'x'.*tf_keras"
    with pytest.raises(ModelFileError, match=message):
        load_model(path)


def test_a_file_of_keras_3_means_what_it_says(tmp_path):
    inputs = keras.Input((6, 6, 3))
    x = kl.Activation("hard_sigmoid")(kl.DepthwiseConv2D(3)(inputs))
    model = keras.Model(inputs, x)
    model.save(tmp_path / "m.h5")
    same(load_model(tmp_path / "m.h5"), model)


def test_an_archive_of_keras_2_says_what_to_do(tmp_path):
    import zipfile

    path = tmp_path / "m.keras"
    keras.Sequential([keras.Input((2,)), kl.Dense(1)]).save(path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content["metadata.json"] = b'{"keras_version": "2.15.0"}'
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(ModelFileError, match=r"Keras 2\.15\.0.*save\('model\.h5'\)"):
        load_model(path)


def student_of(model, images, **options):
    """Through a policy to a file whose decisions or numbers are the student's."""
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 8, 8))
    gmpq.calibrate(student, [images])
    gmpq.snap_biases(student)
    return student


@pytest.mark.parametrize("name", ["vww_96", "str_ww"])
def test_published_files_of_keras_2_go_the_whole_way(name, shared_dir, tmp_path):
    model = load_model(shared_dir / "weights" / "mlperf_tiny" / f"{name}.h5")
    images = np.random.default_rng(0).random((8, *model.input_shape[1:]), np.float32)
    student = student_of(model, images)
    report = export_tflite(student, tmp_path / "m.tflite", verify_data=images)
    assert report.agreement == 1.0
    wanted = np.asarray(model(images))
    np.testing.assert_allclose(student(images), wanted, atol=0.1)


def test_a_published_autoencoder_is_searched_without_ranks(shared_dir):
    model = load_model(shared_dir / "weights" / "mlperf_tiny" / "ad01.h5")
    sounds = np.random.default_rng(0).normal(-15, 5, (64, 640)).astype("float32")
    search = gmpq.PolicySearch(model, eta=0.0)
    search.compile("sgd", "sgd", loss="mse", jit_compile=False)
    search.fit(sounds, sounds, batch_size=32, verbose=0)
    assert len(search.policy()) == 10
    student = student_of(model, sounds)
    error = np.mean((np.asarray(student(sounds)) - np.asarray(model(sounds))) ** 2)
    assert error < 0.05 * np.var(np.asarray(model(sounds)))
