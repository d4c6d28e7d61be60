"""Small classifiers of KerasHub, all the way to a file: which go, which are refused.

    pip install keras-hub
    python benchmarks/keras_hub_classifiers.py \
        --output=results/keras_hub/classifiers.json

Each is built without weights, quantized at W8A8 and exported with float layers allowed.
The question: does the export take other people's networks, or say why not? "refused"
must name a layer and the reason; anything else would be a fault of ours.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.exporter import export_tflite
from gmpq_tf.graph import GraphError

HUB, SHAPE, CLASSES = keras_hub.models, (32, 32, 3), 5
RESNET: dict[str, Any] = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [3],
    "stackwise_num_filters": [64, 96],
    "stackwise_num_blocks": [1, 1],
    "stackwise_num_strides": [1, 2],
    "image_shape": SHAPE,
}
PATCHES: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16}
# Name of the classifier -> its backbone.
BACKBONES: dict[str, Callable[[], Any]] = {
    "ResNet": lambda: HUB.ResNetBackbone(**RESNET, block_type="basic_block"),
    "ResNet V2": lambda: HUB.ResNetBackbone(
        **RESNET, block_type="bottleneck_block", use_pre_activation=True
    ),
    "VGG": lambda: HUB.VGGBackbone([1, 1], [8, 16], image_shape=SHAPE),
    "DenseNet": lambda: HUB.DenseNetBackbone(
        stackwise_num_repeats=[2, 2],
        compression_ratio=0.5,
        growth_rate=8,
        image_shape=SHAPE,
    ),
    "Xception": lambda: HUB.XceptionBackbone(
        stackwise_conv_filters=[[8, 16], [16, 16]],
        stackwise_pooling=[True, False],
        image_shape=(64, 64, 3),
    ),
    "EfficientNet": lambda: HUB.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3],
        stackwise_num_repeats=[1, 1],
        stackwise_input_filters=[24, 24],
        stackwise_output_filters=[24, 32],
        stackwise_expansion_ratios=[1, 4],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_strides=[1, 2],
        stackwise_block_types=["v1", "v1"],
        width_coefficient=1.0,
        depth_coefficient=1.0,
        num_features=64,
        input_shape=(64, 64, 3),
    ),
    "ViT": lambda: HUB.ViTBackbone(SHAPE, (8, 8), **PATCHES, mlp_dim=32),
    "DeiT": lambda: HUB.DeiTBackbone(
        image_shape=SHAPE, patch_size=8, **PATCHES, intermediate_dim=32
    ),
}


def classifier(name: str) -> keras.Model:
    """A small network, as a plain functional model."""
    keras.utils.set_random_seed(0)
    more = {"pooling_hidden_dim": 16} if name == "VGG" else {}
    backbone = BACKBONES[name]()
    cls = getattr(HUB, f"{name.split()[0]}ImageClassifier")
    model = cls(backbone=backbone, num_classes=CLASSES, **more)
    return keras.Model(model.inputs, model.outputs, name=name.lower().replace(" ", "_"))


def whole_way(name: str) -> dict[str, Any]:
    """What came of one."""
    model = classifier(name)
    shape = tuple(model.inputs[0].shape[1:])
    images = np.random.default_rng(0).uniform(0, 1, (64, *shape)).astype("float32")
    try:
        policy = gmpq.BitwidthPolicy.uniform(model, 8, 8)
        student = gmpq.quantize_model(model, policy)
        gmpq.calibrate(student, images)
        gmpq.snap_biases(student)
        with tempfile.TemporaryDirectory() as folder:
            report = export_tflite(
                student,
                Path(folder) / "model.tflite",
                float_layers="allow",
                verify_data=images,
                latency_runs=0,
            )
    except (ExportError, GraphError) as error:
        return {"network": name, "refused": str(error)[:300]}
    return {
        "network": name,
        "file_bytes": report.file_bytes,
        "agreement": report.agreement,
        "float_layers": sorted({part.kind for part in report.float_parts}),
    }


def main() -> None:
    """Try them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    args = parser.parse_args()
    rows = []
    for name in BACKBONES:
        rows.append(whole_way(name))
        print(rows[-1], flush=True)
    versions = {"keras_hub": keras_hub.__version__, "keras": keras.__version__}
    versions |= {"tensorflow": tf.__version__, "python": platform.python_version()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    found = {"versions": versions, "networks": rows}
    args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
