"""Writes what a release saves, and what it computes, for `saved_test.py`.

    PYTHONPATH=CHECKOUT python tests/saved/make.py tests/saved/NAME

Run it with a checkout of a release, whose files every later one must read; then add
NAME to `RELEASES` in the test.
"""

import json
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np

import gmpq_tf as gmpq

try:
    from gmpq_tf.run.loop import EpochBackup
except ImportError:  # until July 2026
    from gmpq_tf.train.loop import EpochBackup

METHODS = (("lsq", "lsq"), ("pact", "max_abs"))
SPACE = {"weight_bits": (2, 4), "activation_bits": (2, 3)}
SHAPE = (6, 6, 3)


def images(count=4, seed=1):
    return np.random.default_rng(seed).uniform(0, 1, (count, *SHAPE)).astype("float32")


def float_model():
    """One of each kind of layer and of quantizer on a tensor."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.BatchNormalization(name="stem_norm")(x)
    x = skip = layers.ReLU(name="stem_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="deep")(x)
    x = layers.SeparableConv2D(4, 3, padding="same", name="separable")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Add(name="add")([x, skip])
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = layers.Conv2D(4, 1, activation="sigmoid", name="gate")(gate)
    x = layers.Multiply(name="multiply")([x, gate])
    x = layers.Conv2D(4, 3, strides=2, activation="relu", name="last")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="float_model")


def searches():
    """Name -> search, compiled, not trained."""
    for input_quantizer, kernel_quantizer in METHODS:
        search = gmpq.PolicySearch(
            float_model(),
            gmpq.SearchSpace(**SPACE),
            input_quantizer=input_quantizer,
            kernel_quantizer=kernel_quantizer,
            eta=1.0,
            bit_ops_budget=0.05,
        )
        search.compile(
            keras.optimizers.SGD(0.01, momentum=0.9),
            keras.optimizers.Adam(0.01),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        yield f"{input_quantizer}_{kernel_quantizer}", search


def main(folder):
    folder.mkdir(exist_ok=True)
    x, outputs = images(), {}

    def save(name, model, values):
        path = folder / f"{name}.keras"
        model.save(path)
        compress(path)
        outputs[name] = np.asarray(values)

    for name, search in searches():
        backup = EpochBackup(folder / f"{name}.backup.npz")
        labels = np.arange(8) % 3
        search.fit(images(8, 2), labels, batch_size=4, verbose=0, callbacks=[backup])
        compress(folder / f"{name}.backup.npz")
        policy = search.policy()
        policy.save(folder / f"{name}.policy.json")
        record = json.dumps(search.importances(), indent=1)
        (folder / f"{name}.importances.json").write_text(record + "\n")
        save(f"{name}.search", search, search(x))
        save(f"{name}.hypernet", search.hypernet, search.hypernet(x))
        methods = dict(
            zip(
                ("input_quantizer", "kernel_quantizer"), name.split("_", 1), strict=True
            )
        )
        student = gmpq.quantize_model(float_model(), policy, **methods)
        gmpq.calibrate(student, [x])
        gmpq.snap_biases(student, x)
        save(f"{name}.student", student, student(x))
    np.savez_compressed(folder / "outputs.npz", **outputs)


def compress(path):
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, part in parts.items():
            file.writestr(name, part)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
