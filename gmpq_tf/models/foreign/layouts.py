"""Names and differences of our networks' layers in Keras and torchvision."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gmpq_tf.models.mobilenet_v2 import STAGES

_PYTORCH_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layers of one of our networks in another library.

    Args:
        source: The network there, such as `"keras.applications.ResNet50"`.
        layers: Our layer name -> theirs, in the order of our network.
        epsilon: Epsilon of their batch normalizations; None: as ours.
        conv_bias: Whether their convolutions add a bias where ours, followed by a
            batch normalization, have none.
        options: Arguments of our builder for the same results.
        scaling: Flags that scale images as the published weights expect.
        channels: Order of colours that the published weights expect.
    """

    source: str
    layers: Mapping[str, str]
    epsilon: float | None
    scaling: str
    conv_bias: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    channels: str = "rgb"

    @property
    def library(self) -> str:
        """Library of the network: `"keras"` or `"torchvision"`."""
        return self.source.split(".")[0]


def _resnet_layers(counts: tuple[int, ...], convolutions: int) -> Iterator[str]:
    """Yields our names of the layers of a ResNet with an ImageNet stem."""
    yield from ("stem_conv", "stem_bn")
    for stage, count in enumerate(counts, 1):
        for block in range(1, count + 1):
            prefix = f"stage{stage}_block{block}_"
            for number in range(1, convolutions + 1):
                yield from (f"{prefix}conv{number}", f"{prefix}bn{number}")
            # Basic blocks of the first stage need no shortcut convolution.
            if block == 1 and (stage > 1 or convolutions == 3):
                yield from (f"{prefix}shortcut", f"{prefix}shortcut_bn")
    yield "head_dense"


def _resnet_in_torchvision(name: str) -> str:
    outer = {"stem_conv": "conv1", "stem_bn": "bn1", "head_dense": "fc"}
    if name in outer:
        return outer[name]
    stage, block, part = _split(name)
    part = {"shortcut": "downsample.0", "shortcut_bn": "downsample.1"}.get(part, part)
    return f"layer{stage}.{block - 1}.{part}"


def _resnet50_in_keras(name: str) -> str:
    outer = {
        "stem_conv": "conv1_conv",
        "stem_bn": "conv1_bn",
        "head_dense": "predictions",
    }
    if name in outer:
        return outer[name]
    stage, block, part = _split(name)
    shortcut = {"shortcut": "0_conv", "shortcut_bn": "0_bn"}
    part = shortcut.get(part) or f"{part[-1]}_{part[:-1]}"
    return f"conv{stage + 1}_block{block}_{part}"


def _mobilenet_blocks() -> list[tuple[str, bool]]:
    """Returns the prefix of each block's layer names, and whether the block expands."""
    return [
        (f"stage{stage}_block{block}_", expansion != 1)
        for stage, (expansion, _, blocks, _) in enumerate(STAGES, 1)
        for block in range(1, blocks + 1)
    ]


def _mobilenet_in_keras() -> Iterator[tuple[str, str]]:
    yield from (("stem_conv", "Conv1"), ("stem_bn", "bn_Conv1"))
    for number, (prefix, expands) in enumerate(_mobilenet_blocks()):
        theirs = f"block_{number}_" if number else "expanded_conv_"
        for part in ("expand", "depthwise", "project")[0 if expands else 1 :]:
            yield f"{prefix}{part}", f"{theirs}{part}"
            yield f"{prefix}{part}_bn", f"{theirs}{part}_BN"
    yield from (("head_conv", "Conv_1"), ("head_bn", "Conv_1_bn"))
    yield "head_dense", "predictions"


def _mobilenet_in_torchvision() -> Iterator[tuple[str, str]]:
    yield from (("stem_conv", "features.0.0"), ("stem_bn", "features.0.1"))
    blocks = _mobilenet_blocks()
    for number, (prefix, expands) in enumerate(blocks, 1):
        theirs, index = f"features.{number}.conv.", 0
        for part in ("expand", "depthwise")[0 if expands else 1 :]:
            yield f"{prefix}{part}", f"{theirs}{index}.0"
            yield f"{prefix}{part}_bn", f"{theirs}{index}.1"
            index += 1
        yield f"{prefix}project", f"{theirs}{index}"
        yield f"{prefix}project_bn", f"{theirs}{index + 1}"
    last = f"features.{len(blocks) + 1}"
    yield from (("head_conv", f"{last}.0"), ("head_bn", f"{last}.1"))
    yield "head_dense", "classifier.1"


def _vgg16_in_keras() -> Iterator[tuple[str, str]]:
    for stage, count in enumerate((2, 2, 3, 3, 3), 1):
        for number in range(1, count + 1):
            yield f"stage{stage}_conv{number}", f"block{stage}_conv{number}"
    yield from (("head_fc1", "fc1"), ("head_fc2", "fc2"))
    yield "head_dense", "predictions"


def _split(name: str) -> tuple[int, int, str]:
    match = re.fullmatch(r"stage(\d+)_block(\d+)_(\w+)", name)
    assert match is not None
    return int(match[1]), int(match[2]), match[3]


def _renamed(names: Iterator[str], rename: Callable[[str], str]) -> dict[str, str]:
    return {name: rename(name) for name in names}


_TORCHVISION_SCALING = (
    "--scaling=mean_std --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225"
)
# Means 123.68, 116.779, 103.939 of pixels in 0..255; no division by a deviation.
_CAFFE_SCALING = (
    "--scaling=mean_std --mean=0.485020,0.457957,0.407604 "
    "--std=0.00392157,0.00392157,0.00392157"
)
_BOTTLENECKS = (3, 4, 6, 3)
# Built-in model -> where its weights are published.
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "mobilenet_v2": (
        Layout(
            "keras.applications.MobileNetV2",
            dict(_mobilenet_in_keras()),
            epsilon=1e-3,
            scaling="--scaling=-1..1",
        ),
        Layout(
            "torchvision.models.mobilenet_v2",
            dict(_mobilenet_in_torchvision()),
            epsilon=_PYTORCH_EPSILON,
            scaling=_TORCHVISION_SCALING,
            options={"padding": "symmetric"},
        ),
    ),
    "resnet18": (
        Layout(
            "torchvision.models.resnet18",
            _renamed(_resnet_layers((2, 2, 2, 2), 2), _resnet_in_torchvision),
            epsilon=_PYTORCH_EPSILON,
            scaling=_TORCHVISION_SCALING,
        ),
    ),
    "resnet50": (
        Layout(
            "keras.applications.ResNet50",
            _renamed(_resnet_layers(_BOTTLENECKS, 3), _resnet50_in_keras),
            epsilon=1.001e-5,
            scaling=_CAFFE_SCALING,
            conv_bias=True,
            channels="bgr",
        ),
    ),
    "resnet50_v1_5": (
        Layout(
            "torchvision.models.resnet50",
            _renamed(_resnet_layers(_BOTTLENECKS, 3), _resnet_in_torchvision),
            epsilon=_PYTORCH_EPSILON,
            scaling=_TORCHVISION_SCALING,
        ),
    ),
    "vgg16": (
        Layout(
            "keras.applications.VGG16",
            dict(_vgg16_in_keras()),
            epsilon=None,  # It has no batch normalization.
            scaling=_CAFFE_SCALING,
            channels="bgr",
        ),
    ),
}
