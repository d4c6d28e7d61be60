"""What is warned of when a model is given is what the export refuses, and no more."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import gmpq_tf as gmpq
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.lowering import LOWERINGS, lower
from gmpq_tf.layer_kinds import LOWERED, names

X = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")


def line(x):
    return layers.Reshape((64, 4))(x)


def flat(x):
    return layers.Flatten()(x)


# Layer or function of an image of 4 channels -> whether files can hold it.
CASES = {
    "relu": (layers.ReLU(), True),
    "relu_1": (layers.ReLU(1.0), True),
    "threshold": (layers.ReLU(threshold=0.1), False),
    "leaky": (layers.LeakyReLU(), True),
    "prelu": (layers.PReLU(), False),
    "tanh": (layers.Activation("tanh"), False),
    "gelu": (layers.Activation("gelu"), False),
    "silu": (layers.Activation("silu"), True),
    "hard_silu": (layers.Activation("hard_silu"), True),
    "sigmoid": (layers.Activation("sigmoid"), True),
    "softmax": (layers.Softmax(), False),
    "dropout": (layers.Dropout(0.5), True),
    "flip": (layers.RandomFlip(), True),
    "crop": (layers.RandomCrop(4, 4), False),
    "resize": (layers.Resizing(5, 5), False),
    "norm": (layers.BatchNormalization(), True),
    "norm of axis 3": (layers.BatchNormalization(3), True),
    "norm of rows": (layers.BatchNormalization(1), False),
    "norm of as many columns": (
        lambda x: layers.BatchNormalization(-2)(layers.MaxPooling2D(2)(x)),
        False,
    ),
    "norm of features": (lambda x: layers.BatchNormalization(1)(flat(x)), True),
    "flat, first": (layers.Flatten("channels_first"), False),
    "flat twice": (lambda x: layers.Flatten("channels_first")(flat(x)), True),
    "layer_norm": (layers.LayerNormalization(), False),
    "conv": (layers.Conv2D(4, 3), True),
    "separable": (layers.SeparableConv2D(4, 3), True),
    "transposed": (layers.Conv2DTranspose(4, 3), True),
    "dilated": (layers.Conv2DTranspose(4, 3, dilation_rate=2), False),
    "average": (layers.AveragePooling2D(2), True),
    "nearest": (layers.UpSampling2D(), True),
    "bilinear": (layers.UpSampling2D(interpolation="bilinear"), True),
    "line": (lambda x: layers.Conv1D(4, 3, padding="causal")(line(x)), True),
    "separable line": (lambda x: layers.SeparableConv1D(4, 3)(line(x)), True),
    "line of prelu": (lambda x: layers.PReLU()(line(x)), False),
    "line scaled": (lambda x: line(x) * 0.5, True),
    "dilated line": (
        lambda x: layers.Conv1DTranspose(4, 3, dilation_rate=2)(line(x)),
        False,
    ),
    "recurrent": (lambda x: layers.GRU(3)(line(x)), False),
    "lambda": (layers.Lambda(lambda x: x * 2), False),
    "clip": (lambda x: ops.clip(x, 0, 6), False),
    "scaled": (lambda x: x * 0.5 + 1.0, True),
    "scaled a pixel": (lambda x: x * np.ones((8, 8, 4), "float32"), False),
    "widened": (lambda x: layers.Conv2D(1, 1)(x) * np.ones(4, "float32"), False),
    "inverse": (lambda x: 1.0 / x, False),
    "standardized a row": (
        layers.Normalization(1, mean=np.zeros(8), variance=np.ones(8)),
        False,
    ),
    "difference": (lambda x: layers.Subtract()([x, layers.ReLU()(x)]), False),
    "three": (lambda x: layers.Add()([x, layers.ReLU()(x), x]), False),
    "product": (lambda x: layers.Multiply()([x, layers.ReLU()(x)]), True),
    "joined": (lambda x: layers.Concatenate()([x, layers.ReLU()(x)]), True),
    "maximum": (lambda x: layers.Maximum()([x, layers.ReLU()(x)]), False),
}


def model_of(function):
    inputs = keras.Input((8, 8, 3))
    x = function(layers.Conv2D(4, 3, padding="same")(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def warned(make):
    """What `make` returns, and whether it warned of the export."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make()
    return made, any("export to TFLite will refuse" in str(w.message) for w in caught)


@pytest.mark.quick_rows(11)
@pytest.mark.parametrize("name", sorted(CASES))
def test_what_is_refused_is_warned_of_at_once(name):
    function, exports = CASES[name]
    model = model_of(function)
    policy = gmpq.BitwidthPolicy.uniform(model, 8, 8)
    student, early = warned(lambda: gmpq.quantize_model(model, policy))
    _, searched = warned(lambda: gmpq.build_hypernet(model))
    assert early == searched == (not exports)
    if exports:
        gmpq.calibrate(student, [X])
        lower(student)
    else:
        with pytest.raises(ExportError, match="before quantize_model"):
            lower(student)


def test_channels_first_is_warned_of():
    inputs = keras.Input((3, 8, 8))
    x = layers.Conv2D(4, 3, data_format="channels_first")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    assert warned(lambda: gmpq.build_hypernet(model))[1]


def test_the_early_list_is_that_of_the_operators():
    assert {*LOWERINGS} == names(*LOWERED)
