"""Every built-in model, and model files good and bad."""

import inspect

import keras
import numpy as np
import pytest

from gmpq_tf.models import MODELS, ModelFileError, build_model, load_model
from gmpq_tf.models.ssd import BACKBONES
from tests.models.golden_names import NAMES


def layer_names(model):
    return [layer.name for layer in model.layers]


@pytest.fixture
def small_model():
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(2, 3, name="conv")(inputs)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="dense")(x))


CLASSIFIERS = [name for name in MODELS if name not in BACKBONES]


@pytest.fixture(scope="module", params=CLASSIFIERS)
def pair(request):
    """A model built twice: other image size, colours, classes and activation."""
    one = build_model(request.param, (32, 32, 3), 10)
    softmax = {"classifier_activation": "softmax"}
    return one, build_model(request.param, (48, 40, 1), 3, **softmax)


def searchable(model):
    kinds = (
        keras.layers.Conv2D,
        keras.layers.DepthwiseConv2D,
        keras.layers.Dense,
    )
    return [layer.name for layer in model.layers if isinstance(layer, kinds)]


@pytest.mark.quick_rows(2)
def test_names_depend_on_nothing_but_the_model(pair):
    one, other = pair
    assert one.name == other.name
    assert layer_names(one) == layer_names(other)
    assert other.output_shape == (None, 3)
    assert sorted(searchable(one)) == sorted(NAMES[one.name].split())


def test_every_model_has_golden_names():
    assert set(NAMES) == set(MODELS)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("name", NAMES)
def test_searchable_layers_do_not_depend_on_the_stem(name):
    arguments = inspect.signature(MODELS[name]).parameters
    choices = {
        "stem": ("imagenet", "cifar"),
        "padding": ("same", "symmetric"),
        "alpha": (0.5, 1.4),
    }
    for option in choices.keys() & arguments.keys():
        for value in choices[option]:
            model = build_model(name, (32, 32, 3), 2, **{option: value})
            assert sorted(searchable(model)) == sorted(NAMES[name].split())


def test_outputs_are_logits_unless_asked(pair):
    activations = [model.get_layer("head_dense").activation for model in pair]
    assert activations == [keras.activations.linear, keras.activations.softmax]


@pytest.mark.quick_rows(2)
def test_keras_file_round_trip(pair, tmp_path):
    model, _ = pair
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-6, atol=1e-6)
    assert layer_names(loaded) == layer_names(model)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_foreign_model_round_trip(small_model, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    small_model.save(path)
    images = np.random.default_rng(0).random((2, 4, 4, 1), np.float32)
    loaded = load_model(str(path))
    np.testing.assert_allclose(loaded(images), small_model(images), rtol=1e-6)


def test_wrong_name_offers_the_nearest():
    with pytest.raises(ValueError, match=r"'resnet81'.*Did you mean 'resnet8'"):
        build_model("resnet81", (32, 32, 3), 10)
    with pytest.raises(ModelFileError, match=r"'resnet81'.*Did you mean 'resnet8'"):
        load_model("resnet81", (32, 32, 3), 10)


def test_built_in_model_needs_shapes():
    with pytest.raises(ValueError, match="num_classes=None"):
        load_model("resnet8", (32, 32, 3))
    assert load_model("resnet8", (8, 8, 1), 3).output_shape == (None, 3)


def test_missing_file_and_other_kind(tmp_path):
    with pytest.raises(ModelFileError, match=r"nowhere\.keras"):
        load_model(tmp_path / "nowhere.keras")
    other = tmp_path / "model.onnx"
    other.write_bytes(b"0")
    with pytest.raises(ModelFileError, match=r"existing \.keras or \.h5"):
        load_model(other)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_truncated_file(small_model, tmp_path, suffix, share):
    path = tmp_path / f"model{suffix}"
    small_model.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelFileError, match="Save it again"):
        load_model(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_code_in_a_file_is_not_run(tmp_path, suffix):
    witness = tmp_path / "was_run"

    def run(x, witness=str(witness)):
        open(witness, "w").close()  # noqa: PTH123
        return x

    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Lambda(run, output_shape=(2,))(inputs))
    path = tmp_path / f"model{suffix}"
    model.save(path)
    witness.unlink(missing_ok=True)
    with pytest.raises(ModelFileError, match="Lambda"):
        load_model(path)
    assert not witness.exists()


def test_weights_only_file_is_refused(small_model, tmp_path):
    path = tmp_path / "model.weights.h5"
    small_model.save_weights(path)
    with pytest.raises(ModelFileError, match="Save it again"):
        load_model(path)


def test_unknown_layer_class_is_named(small_model, tmp_path):
    @keras.saving.register_keras_serializable("elsewhere")
    class Doubled(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    model = keras.Sequential([small_model, Doubled()])
    model.save(tmp_path / "model.keras")
    del keras.saving.get_custom_objects()["elsewhere>Doubled"]
    with pytest.raises(ModelFileError, match=r"Doubled.*import the modules"):
        load_model(tmp_path / "model.keras")


def test_a_layer_that_holds_code_is_named_with_a_way_out(tmp_path):
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Lambda(lambda v: v / 127.5 - 1, name="to_range")(inputs)
    x = keras.layers.Conv2D(2, 3, activation=lambda v: v, name="odd")(x)
    inner = keras.Model(inputs, x)
    outer = keras.Model(inputs, keras.layers.Flatten()(inner(inputs)))
    for suffix in (".keras", ".h5"):
        outer.save(tmp_path / f"model{suffix}")
        message = r"'odd', 'to_range'\. Build.*Rescaling.*set_weights"
        with pytest.raises(ModelFileError, match=message):
            load_model(tmp_path / f"model{suffix}")


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        (["m/saved_model.pb"], "m", r"SavedModel\. .*model\.save\('model\.keras'\)"),
        (
            ["m/saved_model.pb", "m/keras_metadata.pb"],
            "m",
            r"SavedModel of Keras 2\. .*tf_keras.*\.save\('model\.h5'\)",
        ),
        (["m/best.keras"], "m", r"a folder\. Name one of the files in it: best\.keras"),
        (["m/x.txt"], "m", r"a folder\. Name a file"),
        (["m.tflite"], "m.tflite", r"no layers to train.*made of"),
        (["m.onnx"], "m.onnx", r"copy the weights"),
        (["m.pb"], "m.pb", r"model\.save\('model\.keras'\)"),
        (["m.PTH"], "m.PTH", r"torchvision as \.safetensors"),
        (["m.hdf5"], "m.hdf5", r"Rename"),
        (["m.xyz"], "m.xyz", r"ends in none of them"),
        (["model.keras"], "modell.keras", r"does not exist.*mean '.*model\.keras'"),
        (["model.keras"], "no/where.h5", r"does not exist"),
        ([], "mobilenet_v22", r"does not exist.*mean 'mobilenet_v2'"),
    ],
)
def test_what_is_no_model_file_is_recognized(files, name, message, tmp_path):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"0")
    path = tmp_path / name if files else name
    with pytest.raises(ModelFileError, match=message):
        load_model(path)
