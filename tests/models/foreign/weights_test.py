"""Weights of other libraries: outputs equal theirs, and what cannot be is refused."""

import h5py
import keras
import numpy as np
import pytest

from gmpq_tf.models import WeightsError, build_model, build_pretrained
from gmpq_tf.models.foreign.layouts import LAYOUTS
from tests.models.references import (
    BASIC,
    BOTTLENECK,
    CHAIN_GAIN,
    RESIDUAL_GAIN,
    mobilenet_forward,
    mobilenet_state,
    randomize,
    resnet_forward,
    resnet_state,
)

SHAPE = (64, 64, 3)
APPLICATIONS = {
    "mobilenet_v2": "MobileNetV2",
    "resnet50": "ResNet50",
    "vgg16": "VGG16",
}


def application(name, classes=5, shape=SHAPE, **options):
    model = getattr(keras.applications, APPLICATIONS[name])(
        weights=None,
        input_shape=shape,
        classes=classes,
        classifier_activation=None,
        **options,
    )
    randomize(model, CHAIN_GAIN if name == "mobilenet_v2" else RESIDUAL_GAIN)
    return model


def pixels(shape=SHAPE):
    return np.random.default_rng(1).uniform(-1, 1, (2, *shape)).astype(np.float32)


def assert_same(model, expected, images):
    expected = np.asarray(expected)
    assert np.abs(expected[0] - expected[1]).max() > 0.1  # the images matter
    np.testing.assert_allclose(model(images), expected, atol=1e-4, rtol=1e-4)


def save(state, path):
    np.savez(path, **state)
    return path


@pytest.fixture(scope="module")
def resnet18_state():
    return resnet_state(BASIC, (2, 2, 2, 2), 5)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".keras"])
def test_mobilenet_of_keras_in_every_kind_of_file(tmp_path, suffix):
    reference = application("mobilenet_v2", alpha=0.5)
    path = tmp_path / f"reference{suffix}"
    if suffix == ".weights.h5":
        reference.save_weights(path)
    else:
        reference.save(path)
    built = build_pretrained("mobilenet_v2", SHAPE, 5, path, alpha=0.5)
    assert_same(built.model, reference(pixels()), pixels())


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mobilenet_v2", (96, 96, 3)),
        ("resnet50", (63, 70, 3)),
        ("vgg16", SHAPE),
    ],
)
def test_keras_applications(name, shape, tmp_path):
    reference = application(name, shape=shape)
    path = tmp_path / "reference.weights.h5"
    reference.save_weights(path)
    options = {"stem": "imagenet"} if name == "resnet50" else {}
    built = build_pretrained(name, shape, 5, path, **options)
    assert_same(built.model, reference(pixels(shape)), pixels(shape))
    # Those that keras.applications publishes for these two read blue, green, red.
    hinted = any("--weights_channels=bgr" in note for note in built.notes)
    assert hinted == (name in ("resnet50", "vgg16"))


@pytest.mark.parametrize("shape", [SHAPE, (65, 71, 3)])
def test_resnet18_of_torchvision(shape, tmp_path, resnet18_state):
    path = save(resnet18_state, tmp_path / "state.npz")
    built = build_pretrained("resnet18", shape, 5, path)
    expected = resnet_forward(resnet18_state, pixels(shape), BASIC, (2, 2, 2, 2))
    assert_same(built.model, expected, pixels(shape))


def test_resnet50_of_torchvision(tmp_path):
    state = resnet_state(BOTTLENECK, (3, 4, 6, 3), 5)
    path = save(state, tmp_path / "state.npz")
    built = build_pretrained("resnet50_v1_5", SHAPE, 5, path)
    expected = resnet_forward(state, pixels(), BOTTLENECK, (3, 4, 6, 3))
    assert_same(built.model, expected, pixels())
    with pytest.raises(WeightsError, match="use model='resnet50_v1_5'"):
        build_pretrained("resnet50", SHAPE, 5, path)


@pytest.mark.parametrize("shape", [SHAPE, (65, 71, 3)])
def test_mobilenet_of_torchvision(shape, tmp_path):
    from safetensors.numpy import save_file

    state = mobilenet_state(5)
    path = tmp_path / "state.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in state.items()}, path)
    built = build_pretrained("mobilenet_v2", shape, 5, path)
    assert_same(built.model, mobilenet_forward(state, pixels(shape)), pixels(shape))


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("padding", "suffix"),
    [("same", ".keras"), ("symmetric", ".keras"), ("symmetric", ".weights.h5")],
)
def test_our_own_file_keeps_the_padding(padding, suffix, tmp_path):
    original = build_model("mobilenet_v2", SHAPE, 5, alpha=0.35, padding=padding)
    randomize(original, CHAIN_GAIN)
    path = tmp_path / f"model{suffix}"
    original.save_weights(path) if suffix == ".weights.h5" else original.save(path)
    built = build_pretrained("mobilenet_v2", SHAPE, 5, path, alpha=0.35)
    assert_same(built.model, original(pixels()), pixels())


def test_the_shared_mobilenet_file(shared_dir):
    path = shared_dir / "weights" / "mobilenet_v2_imagenet.weights.h5"
    shape = (96, 96, 3)
    reference = keras.applications.MobileNetV2(
        shape, weights=None, classifier_activation=None
    )
    reference.load_weights(path)
    built = build_pretrained("mobilenet_v2", shape, 1000, path)
    images = pixels(shape)
    np.testing.assert_allclose(built.model(images), reference(images), atol=1e-4)


def test_other_classes_leave_only_the_classifier_new(tmp_path, resnet18_state):
    path = save(resnet18_state, tmp_path / "state.npz")
    keras.utils.set_random_seed(3)
    fresh = build_model("resnet18", SHAPE, 7)
    keras.utils.set_random_seed(3)
    built = build_pretrained("resnet18", SHAPE, 7, path)
    full = build_pretrained("resnet18", SHAPE, 5, path)
    for layer in built.model.layers:
        source = fresh if layer.name == "head_dense" else full.model
        expected = source.get_layer(layer.name).get_weights()
        for a, b in zip(layer.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert any(
        "head_dense (fc.weight is stored as (5, 512), needed as (7, 512))" in note
        for note in built.notes
    )
    assert not any("new initialization" in note for note in full.notes)


def test_vgg16_at_another_size_keeps_its_convolutions(tmp_path):
    reference = application("vgg16", shape=(32, 32, 3))
    reference.save_weights(tmp_path / "small.weights.h5")
    built = build_pretrained("vgg16", SHAPE, 5, tmp_path / "small.weights.h5")
    assert any("head_fc1, head_fc2, head_dense (fc1/" in n for n in built.notes)
    for ours, theirs in (
        ("stage1_conv1", "block1_conv1"),
        ("stage5_conv3", "block5_conv3"),
    ):
        a = built.model.get_layer(ours).get_weights()
        b = reference.get_layer(theirs).get_weights()
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def write_keras2_file(model, path, rename):
    """What Keras 2's save_weights wrote, under names of long ago."""
    layers = [layer for layer in model.layers if layer.weights]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [rename(i, x.name) for i, x in enumerate(layers)]
        for index, layer in enumerate(layers):
            group = file.create_group(rename(index, layer.name))
            names = [f"w{i}:0" for i in range(len(layer.weights))]
            group.attrs["weight_names"] = names
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name] = value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rename"),
    [
        ("mobilenet_v2", lambda i, name: f"bn{i}_conv"),
        ("resnet50", lambda i, name: "probs" if name == "predictions" else name),
    ],
)
def test_published_keras_2_files_are_matched_by_order(name, rename, tmp_path):
    reference = application(name)
    write_keras2_file(reference, tmp_path / "old.h5", rename)
    built = build_pretrained(name, SHAPE, 5, tmp_path / "old.h5")
    assert_same(built.model, reference(pixels()), pixels())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_imagenet_is_what_keras_fetches(name, monkeypatch):
    """ResNet-50's published weights read blue, green, red; the model reads RGB."""
    reference = application(name, classes=1000)
    monkeypatch.setattr(
        keras.applications, APPLICATIONS[name], lambda weights, **options: reference
    )
    built = build_pretrained(name, SHAPE, 1000, "imagenet")
    images = pixels()
    turned = images[..., ::-1] if name == "resnet50" else images
    assert_same(built.model, reference(turned), images)
    scaling = "--scaling=-1..1" if name == "mobilenet_v2" else "--scaling=mean_std"
    assert any(scaling in note for note in built.notes)


def test_channels_of_a_file_can_be_turned(tmp_path, resnet18_state):
    path = save(resnet18_state, tmp_path / "state.npz")
    built = build_pretrained("resnet18", SHAPE, 5, path, channels="bgr")
    images = pixels()
    expected = resnet_forward(resnet18_state, images[..., ::-1], BASIC, (2, 2, 2, 2))
    assert_same(built.model, expected, images)
    with pytest.raises(ValueError, match=r"'rgb' or 'bgr'.*channels='bg'.*'bgr'\?"):
        build_pretrained("resnet18", SHAPE, 5, path, channels="bg")


@pytest.mark.parametrize(("name", "remedy"), [("vgg16", "bgr"), ("mobilenet_v2", "")])
def test_a_failed_download_says_what_to_fetch(name, remedy, monkeypatch):
    def fail(**options):
        raise Exception("URL fetch failure on https://x/weights.h5: None -- no route")

    monkeypatch.setattr(keras.applications, APPLICATIONS[name], fail)
    with pytest.raises(
        WeightsError, match=rf"https://x/weights\.h5.*--weights=FILE.*{remedy}"
    ):
        build_pretrained(name, SHAPE, 5, "imagenet")


def test_imagenet_needs_a_published_model():
    with pytest.raises(WeightsError, match="model='resnet18'; published: mobilenet_v2"):
        build_pretrained("resnet18", SHAPE, 5, "imagenet")
    with pytest.raises(ValueError, match="Did you mean 'resnet18'"):
        build_pretrained("resnet_18", SHAPE, 5, "imagenet")


def test_a_state_dict_needs_a_model_of_torchvision(tmp_path, resnet18_state):
    path = save(resnet18_state, tmp_path / "state.npz")
    with pytest.raises(WeightsError, match=r"resnet20.*use model='resnet18'"):
        build_pretrained("resnet20", (32, 32, 3), 5, path)
    with pytest.raises(WeightsError, match=r"lacks 'features.*use model='resnet18'"):
        build_pretrained("mobilenet_v2", SHAPE, 5, path)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_weights_of_another_of_our_models_are_refused(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    small = build_model("resnet20", (8, 8, 3), 2)
    small.save_weights(path) if suffix == ".weights.h5" else small.save(path)
    with pytest.raises(WeightsError, match="Use model='resnet20'"):
        build_pretrained("resnet56", (8, 8, 3), 2, path)


def test_weights_of_a_foreign_model_are_refused(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="steam_conv")(inputs)
    keras.Model(inputs, x, name="other").save(tmp_path / "other.keras")
    with pytest.raises(
        WeightsError, match=r"lacks 'stem_conv/kernel'.*mean 'steam_conv/kernel'"
    ):
        build_pretrained("resnet8", (8, 8, 3), 2, tmp_path / "other.keras")


def test_keras_weights_do_not_enter_the_other_resnet50(tmp_path):
    with h5py.File(tmp_path / "old.h5", "w") as file:
        names = LAYOUTS["resnet50"][0].layers.values()
        file.attrs["layer_names"] = list(names)
        for name in names:
            file.create_group(name).attrs["weight_names"] = ["kernel:0"]
            file[f"{name}/kernel:0"] = np.zeros(1)
    with pytest.raises(WeightsError, match="use model='resnet50'"):
        build_pretrained("resnet50_v1_5", (8, 8, 3), 5, tmp_path / "old.h5")


def test_a_stem_that_does_not_fit_is_named(tmp_path, resnet18_state):
    path = save(resnet18_state, tmp_path / "state.npz")
    with pytest.raises(
        WeightsError,
        match=r"'conv1.weight' is \(64, 3, 7, 7\) and should be \(64, 3, 3, 3\)"
        ".*--stem=imagenet",
    ):
        build_pretrained("resnet18", (32, 32, 3), 5, path)
    small = build_pretrained("resnet18", (32, 32, 3), 5, path, stem="imagenet")
    expected = resnet_forward(resnet18_state, pixels((32, 32, 3)), BASIC, (2, 2, 2, 2))
    assert_same(small.model, expected, pixels((32, 32, 3)))
