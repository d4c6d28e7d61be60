"""Mean bits that short searches of GMPQ and EdMIPS end at, for `transfer_bank.py`.

    python benchmarks/transfer_bank_searches.py --shared=SHARED --workdir=...

MobileNetV2 at 96 pixels with a linear classifier of the proxy is searched at W5A5's bit
operations. The stored weights have BatchNormalization folded, which training would
undo: its statistics are measured and put back first; inference stays what it was.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from transfer_bank_network import (
    BUDGETS,
    CALIBRATED,
    PROXIES,
    SPACE,
    TRAINED,
    Images,
    linear_head,
    weights,
)

import gmpq_tf as gmpq
from gmpq_tf.search.strategies.gradient import read_importances
from gmpq_tf.search.values import plain

SIDE = 96
RATES = {"learning_rate": 1e-3, "importance_learning_rate": 0.2}
STRATEGIES = ("gmpq", "edmips")


def main() -> None:
    """Search with both, write searches.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--source", default="flowers17", choices=PROXIES)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    images = PROXIES[args.source](args.shared / "data")[: CALIBRATED + TRAINED]
    small = tf.image.resize(images.inputs, (SIDE, SIDE), antialias=True).numpy()
    model = proxy_model(weights(args.shared), Images(small, images.labels))
    path = args.workdir / "searches.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for strategy in STRATEGIES:
        name = f"{strategy} | {args.source}"
        if name not in found:
            found[name] = search(model, small, images.labels, strategy, args.epochs)
            path.write_text(json.dumps(found))


def search(
    model: keras.Model,
    inputs: np.ndarray,
    labels: np.ndarray,
    strategy: str,
    epochs: int,
) -> dict[str, Any]:
    """Values of both ways to read what a search learned, and its processor seconds."""
    started = time.process_time()
    result = gmpq.search_policy(
        model,
        (inputs, labels),
        strategy,
        BUDGETS[0],
        SPACE,
        calibration_images=CALIBRATED,
        epochs=epochs,
        **RATES,
    )
    spent = round(time.process_time() - started)
    probabilities = {
        name: tuple(np.array(list(side.values())) for side in pair)
        for name, pair in result.valued.columns["probability"].items()
    }
    candidates = SPACE.candidates(model)
    print(f"{strategy}: {spent} s, {result.history}", flush=True)
    return {
        "seconds": spent,
        "history": result.history,
        "values": {
            readout: plain(read_importances(probabilities, candidates, readout).values)
            for readout in ("expected_bits", "log_probability")
        },
    }


def proxy_model(path: Path, images: Images) -> keras.Model:
    """The network at 96 pixels with statistics put back, and a classifier of the proxy.

    Args:
        path: of the weights.
        images: [n, 96, 96, 3], and labels.
    """
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        weights=None, classifier_activation=None, input_shape=(SIDE, SIDE, 3)
    )
    model.load_weights(path)
    put_statistics_back(model, images.inputs[:128])
    feature = model.get_layer("out_relu").output
    backbone = keras.Model(model.input, feature)
    pooled = backbone.predict(images.inputs, batch_size=64, verbose=0).mean((1, 2))
    head = linear_head(pooled, images.labels, tuple(feature.shape[1:]))
    means = keras.layers.GlobalAveragePooling2D()(feature)
    dense = keras.layers.Dense(int(images.labels.max()) + 1, name="predictions")
    proxy = keras.Model(model.input, dense(means), name="proxy")
    dense.set_weights(head.get_layer("own").get_weights())
    return proxy


def put_statistics_back(model: keras.Model, inputs: np.ndarray) -> None:
    """Give each BatchNormalization the statistics of its input, and undo them in it.

    Args:
        model: changed; its outputs in inference stay.
        inputs: images that the statistics are of, [n, ...].
    """
    kind = keras.layers.BatchNormalization
    norms = [layer for layer in model.layers if isinstance(layer, kind)]
    inner = keras.Model(model.input, [layer.input for layer in norms])
    seen = [np.asarray(each) for each in inner(inputs, training=False)]
    for layer, values in zip(norms, seen, strict=True):
        gamma, beta, mean, variance = (np.asarray(w) for w in layer.get_weights())
        axes = tuple(range(values.ndim - 1))
        new_mean = values.mean(axes, dtype="float64")
        new_variance = values.var(axes, dtype="float64")
        slope = gamma / np.sqrt(variance + layer.epsilon)
        layer.set_weights(
            [
                slope * np.sqrt(new_variance + layer.epsilon),
                beta + slope * (new_mean - mean),
                new_mean,
                new_variance,
            ]
        )


if __name__ == "__main__":
    main()
