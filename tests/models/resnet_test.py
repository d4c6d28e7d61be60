"""ResNets against published counts, closed forms and MLPerf's own file."""

import keras
import numpy as np
import pytest

from gmpq_tf.models import build_model


def trainable_count(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def names_of(model, *kinds):
    return [layer.name for layer in model.layers if type(layer).__name__ in kinds]


def basic_blocks_count(widths, blocks):
    """Convolutions without bias, two numbers a channel of normalization."""
    total, channels = 0, widths[0]
    for width in widths:
        for _ in range(blocks):
            total += 9 * channels * width + 9 * width * width + 4 * width
            total += channels * width + 2 * width if channels != width else 0
            channels = width
    return total


def bottlenecks_count(widths, blocks):
    """1x1, 3x3 and 1x1 convolution without bias, each normalized; four times wider."""
    total, channels = 0, widths[0]
    for width, count in zip(widths, blocks, strict=True):
        for block in range(count):
            total += channels * width + 9 * width * width + 4 * width * width
            total += 2 * (width + width + 4 * width)
            total += (channels + 2) * 4 * width if block == 0 else 0
            channels = 4 * width
    return total


def test_resnet18_has_the_published_number_of_parameters():
    stem, classifier = 7 * 7 * 3 * 64 + 2 * 64, 513 * 1000
    expected = stem + basic_blocks_count((64, 128, 256, 512), 2) + classifier
    assert expected == 11_689_512  # torchvision's
    assert trainable_count(build_model("resnet18", (224, 224, 3), 1000)) == expected


@pytest.mark.parametrize("name", ["resnet50", "resnet50_v1_5"])
def test_resnet50_has_the_published_number_of_parameters(name):
    stem, classifier = 7 * 7 * 3 * 64 + 2 * 64, 2049 * 1000
    blocks = bottlenecks_count((64, 128, 256, 512), (3, 4, 6, 3))
    assert stem + blocks + classifier == 25_557_032  # torchvision's
    model = build_model(name, (64, 64, 3), 1000)
    assert trainable_count(model) == stem + blocks + classifier


@pytest.mark.parametrize(
    ("name", "first", "second"), [("resnet50", 2, 1), ("resnet50_v1_5", 1, 2)]
)
def test_where_bottlenecks_shrink(name, first, second):
    model = build_model(name, (64, 64, 3), 2)
    for stage, side in ((1, 16), (2, 8), (3, 4), (4, 2)):
        block = f"stage{stage}_block1"
        strides = [model.get_layer(f"{block}_conv{i}").strides[0] for i in (1, 2, 3)]
        assert strides == ([1, 1, 1] if stage == 1 else [first, second, 1])
        width = 256 * 2 ** (stage - 1)
        shape = model.get_layer(f"{block}_relu3").output.shape
        assert shape == (None, side, side, width)


def test_resnet56_count_is_the_closed_form():
    expected = 27 * 16 + 32 + basic_blocks_count((16, 32, 64), 9) + 650
    assert trainable_count(build_model("resnet56", (32, 32, 3), 10)) == expected


def test_resnet18_for_small_images_keeps_their_size():
    model = build_model("resnet18", (32, 32, 3), 10)
    assert model.get_layer("stem_conv").output.shape == (None, 32, 32, 64)
    assert model.get_layer("stage4_block2_relu2").output.shape == (None, 4, 4, 512)
    expected = 27 * 64 + 128 + basic_blocks_count((64, 128, 256, 512), 2) + 5130
    assert trainable_count(model) == expected


def test_resnet18_stem_can_be_chosen():
    model = build_model("resnet18", (32, 32, 3), 10, stem="imagenet")
    assert model.get_layer("stem_conv").kernel.shape == (7, 7, 3, 64)
    assert model.get_layer("stem_pool").output.shape == (None, 8, 8, 64)
    with pytest.raises(ValueError, match="stem='cifra'"):
        build_model("resnet18", (32, 32, 3), 10, stem="cifra")


def test_resnet20_count_is_the_closed_form():
    expected = 27 * 16 + 32 + basic_blocks_count((16, 32, 64), 3) + 650
    assert trainable_count(build_model("resnet20", (32, 32, 3), 10)) == expected


@pytest.mark.parametrize(
    "name, block",
    [("resnet18", "stage2_block1"), ("resnet20", "stage3_block1")],
)
def test_layer_names(name, block):
    model = build_model(name, (32, 32, 3), 10)
    names = [layer.name for layer in model.layers if layer.name.startswith(block)]
    parts = "conv1 bn1 relu1 conv2 bn2 shortcut shortcut_bn add relu2".split()
    assert sorted(names) == sorted(f"{block}_{part}" for part in parts)
    assert {"stem_conv", "head_pool", "head_dense"} <= {
        layer.name for layer in model.layers
    }


def test_resnet8_layer_names_are_golden():
    model = build_model("resnet8", (32, 32, 3), 10)
    assert sorted(names_of(model, "Conv2D", "Dense")) == [
        "head_dense",
        "stage1_block1_conv1",
        "stage1_block1_conv2",
        "stage2_block1_conv1",
        "stage2_block1_conv2",
        "stage2_block1_shortcut",
        "stage3_block1_conv1",
        "stage3_block1_conv2",
        "stage3_block1_shortcut",
        "stem_conv",
    ]


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    "name", ["resnet8", "resnet18", "resnet20", "resnet50", "resnet50_v1_5"]
)
@pytest.mark.parametrize("shape", [(8, 8, 1), (33, 47, 3), (67, 65, 3)])
def test_any_size_gives_finite_logits(name, shape):
    model = build_model(name, shape, 7)
    logits = model(np.random.default_rng(0).random((2, *shape), np.float32))
    assert logits.shape == (2, 7)
    assert np.isfinite(logits).all()


def test_resnet8_is_mlperf_tiny_layer_for_layer(shared_dir):
    path = shared_dir / "weights" / "mlperf_tiny_resnet8_cifar10.h5"
    reference = keras.models.load_model(path, compile=False)
    model = build_model("resnet8", (32, 32, 3), 10, classifier_activation="softmax")
    model.set_weights(reference.get_weights())
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3))
    images = images.astype(np.float32)
    np.testing.assert_allclose(model(images), reference([images]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_epsilon_is_that_of_the_published_network(name):
    """torch.nn.BatchNorm2d's; small-image variants keep Keras's."""
    for stem, epsilon in (("imagenet", 1e-5), ("cifar", 1e-3)):
        model = build_model(name, (32, 32, 3), 2, stem=stem)
        assert {getattr(x, "epsilon", epsilon) for x in model.layers} == {epsilon}
