"""Writes what `run.py` trains: a network's graph, weights and calibrated grids.

    python benchmarks/policy_bank_jax/export_network.py \
        resnet8=mlperf_tiny_resnet8_cifar10.h5 resnet20=resnet20_cifar10.keras \
        --data_dir=TFDS_FOLDER --output=bank \
        --policy results/policy_bank/policies/*.json

Into the folder: NAME.json (graph), NAME.npz (weights; ranges and steps of every layer
at 2 to 8 bits, as `calibrate` sets them), policies.json, macs.json, and CIFAR-10 as
`train.npy`, `test.npy` with `_labels`. Calibration sees the float model, so a grid
depends on its own bits alone: grids of any policy are read out of these tables.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

import gmpq_tf as gmpq
from gmpq_tf.cost import count_cost
from gmpq_tf.data import DataConfig, Dataset, load_dataset
from gmpq_tf.graph import is_searchable, read_graph, searchable_names
from gmpq_tf.models import load_model
from gmpq_tf.space import random_policy

NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def described(call: Any, bits: int, arrays: dict[str, np.ndarray]) -> dict:
    """A call as plain JSON; its arrays go into `arrays`."""
    layer, name = call.layer, call.name
    config, kind = layer.get_config(), type(layer).__name__
    found = {"name": name, "type": kind, "ins": [*call.inputs], "outs": [*call.outputs]}
    quantizer = layer if kind == "InputQuantizer" else None
    if is_searchable(layer):
        quantizer = layer.input_quantizer
        found |= {
            "strides": list(config.get("strides", [])),
            "padding": config.get("padding"),
            "bias": layer.use_bias,
            "dense": kind == "QuantDense",
            "group": float(layer.kernel_quantizer._group_size),
        }
        steps = np.asarray(layer.kernel_quantizer.log2_step)
        arrays[f"{name}/log2_step/{bits}"] = steps[0].reshape(-1)
        arrays[f"{name}/kernel"] = np.asarray(layer.kernel)
        if layer.use_bias:
            arrays[f"{name}/bias"] = np.asarray(layer.bias)
    if quantizer is not None:
        end = "" if quantizer is layer else f"/{bits}"
        arrays[f"{name}/log2_range{end}"] = np.asarray(quantizer.log2_range)
        arrays[f"{name}/zero{end}"] = np.asarray(quantizer.zero_code)
        found |= {
            "bits": quantizer.bits[0],
            "signed": quantizer.signed,
            "pow2": quantizer.power_of_two,
            "learn": quantizer.learn_range,
            "features": int(np.prod(layer.input.shape[1:])),
        }
    elif kind == "BatchNormalization":
        found |= {key: config[key] for key in ("epsilon", "momentum")}
        arrays |= {f"{name}/{key}": np.asarray(getattr(layer, key)) for key in NORM}
    elif kind == "Normalization":
        found["mean"] = np.asarray(layer.mean).reshape(-1).tolist()
        found["std"] = np.sqrt(np.asarray(layer.variance)).reshape(-1).tolist()
    elif kind == "ZeroPadding2D":
        found["pad"] = config["padding"]
    elif kind == "Activation":
        found["act"] = config["activation"]
    return found


def export(model: keras.Model, data: Dataset, path: Path) -> None:
    """Graph and arrays of one network."""
    arrays: dict[str, np.ndarray] = {}
    names = searchable_names(model)
    for bits in range(2, 9):
        pinned = dict.fromkeys(names, (bits, bits))
        policy = gmpq.BitwidthPolicy.uniform(model, bits, bits, pinned=pinned)
        student = gmpq.quantize_model(model, policy)
        gmpq.calibrate(student, data.calibration(512))
        calls = [described(c, bits, arrays) for c in read_graph(student).calls]
    graph = {"ops": calls, "input": calls[0]["ins"][0], "output": calls[-1]["outs"][0]}
    path.with_suffix(".json").write_text(json.dumps(graph))
    np.savez(path.with_suffix(".npz"), **arrays)


def policies(model: keras.Model) -> dict[str, gmpq.BitwidthPolicy]:
    """Uniform and random policies at the bit operations of W3A3."""
    names, wide = searchable_names(model), tuple(range(2, 9))
    free = {names[0]: (None, 8), names[-1]: (8, 8)}  # the stem's kernel is searched
    few = (2, 3, 4)
    spaces = {
        "random": (gmpq.SearchSpace(few, few), 64),
        "wide": (gmpq.SearchSpace(wide, wide, free), 48),
        "stemfree": (gmpq.SearchSpace(few, few, free), 32),
    }
    uniform = gmpq.BitwidthPolicy.uniform
    found = {f"uniform{b}": uniform(model, b, b) for b in range(2, 7)}
    for name, (space, count) in spaces.items():
        for seed in range(count):
            found[f"{name}{seed}"] = random_policy(model, space, "W3A3", seed)
    return found


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", help="NAME=FILE, inputs 0..255")
    parser.add_argument("--data_dir", help="TFDS folder that holds cifar10")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--policy", nargs="*", default=[], help="files, of the first")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    config = DataConfig(
        "cifar10", data_dir=args.data_dir, scaling="0..255", validation_size=5000
    )
    data = load_dataset(config)
    macs, bits = {}, {}
    for text in args.networks:
        name, file = text.split("=", 1)
        model = load_model(file)
        export(model, data, args.output / name)
        found = policies(model)
        if not bits:
            found |= {Path(p).stem: gmpq.BitwidthPolicy.load(p) for p in args.policy}
        macs[name] = {layer.name: layer.macs for layer in count_cost(model).layers}
        bits[name] = {
            key: {n: [b.weight_bits, b.activation_bits] for n, b in policy.items()}
            for key, policy in found.items()
        }
    (args.output / "macs.json").write_text(json.dumps(macs))
    (args.output / "policies.json").write_text(json.dumps(bits))
    import tensorflow_datasets as tfds

    for split in ("train", "test"):
        images = tfds.as_numpy(
            tfds.load("cifar10", split=split, data_dir=args.data_dir, batch_size=-1)
        )
        np.save(args.output / f"{split}.npy", images["image"])
        np.save(args.output / f"{split}_labels.npy", images["label"].astype("int32"))


if __name__ == "__main__":
    main()
