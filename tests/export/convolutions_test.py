import keras
import numpy as np
import pytest

from gmpq_tf.export.integers.layouts import keras_layout, stored_layout
from gmpq_tf.export.tflite.flatbuffer import read_model, tensor_type
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.export.tflite.verify import local_deviations
from gmpq_tf.graph import layer_macs
from gmpq_tf.transform import build_hypernet, snap_biases
from tests.export.nets import student_of

L = keras.layers


@pytest.mark.parametrize(
    ("layer", "stored"),
    [
        (L.Conv2D(5, (3, 2)), (5, 3, 2, 4)),
        (L.DepthwiseConv2D((3, 2), depth_multiplier=5), (1, 3, 2, 20)),
        (L.Dense(5), (5, 4)),
        (L.Conv2DTranspose(5, (3, 2)), (5, 3, 2, 4)),
    ],
)
def test_layouts_round_trip(layer, stored):
    layer.build((None, 8, 8, 4))
    kind, kernel = type(layer).__name__, np.asarray(layer.kernel)
    moved, axis = stored_layout(kind, kernel)
    assert moved.shape == stored
    assert axis == (3 if kind == "DepthwiseConv2D" else 0)
    np.testing.assert_array_equal(keras_layout(kind, moved, kernel.shape), kernel)


@pytest.mark.quick_rows(15)
@pytest.mark.parametrize("storage", ["packed", "smallest"])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("inputs", [6, 7, 8, 9, 10, 12, 27, 36])
def test_rows_of_any_length_are_computed_exactly(inputs, bits, storage):
    """XNNPACK leaves rows that do not fill their bytes to kernels that round twice."""
    image = keras.Input((inputs,), name="image")
    model = keras.Model(image, L.Dense(64, name="d")(image))
    x = np.random.default_rng(0).normal(size=(64, inputs)).astype("float32")
    student = student_of(model, bits, 8, pinned={}, x=x)
    snap_biases(student)
    lowered = lower(student, storage)
    narrowest = 4 if bits == 2 and storage == "smallest" else 2  # codes a byte
    wanted = next(
        kind
        for kind, codes in (("INT2", 4), ("INT4", 2), ("INT8", 1))
        if codes <= narrowest and inputs % codes == 0
    )
    read = read_model(lowered.content)
    assert tensor_type(read, lowered.kernels[0].tensor) == wanted
    dense = [d for d in local_deviations(lowered, [x]) if d.kind == "Dense"]
    assert [d.off for d in dense] == [0.0]


TRANSPOSED = {
    "same": {"padding": "same"},
    "same 2": {"padding": "same", "strides": 2},
    "same 3": {"padding": "same", "strides": 3},
    "same 2x3": {"padding": "same", "strides": (1, 3)},
    "short same": {"padding": "same", "strides": 3, "kernel_size": 2},
    "valid": {},
    "valid 2": {"strides": 2},
    "valid 3x2": {"strides": (3, 2), "kernel_size": (2, 4)},
    "short valid": {"strides": 3, "kernel_size": 2},
    "valid, longer": {"strides": 2, "output_padding": 1},
    "same, longer": {"padding": "same", "strides": 2, "output_padding": 1},
    "same, shorter": {"padding": "same", "strides": 2, "output_padding": 0},
}


def upscaler(follows="", **options):
    image = keras.Input((5, 6, 4), name="image")
    options = {"filters": 7, "kernel_size": 3, **options}
    x = L.Conv2DTranspose(**options, use_bias=follows != "norm", name="up")(image)
    if follows == "norm":
        x = L.ReLU()(L.BatchNormalization(name="norm")(x))
    return keras.Model(image, L.Conv2D(3, 1, name="head")(x))


def images(count=32):
    shape = (count, 5, 6, 4)
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.quick_rows(5)
@pytest.mark.parametrize("follows", ["", "norm"])
@pytest.mark.parametrize("case", sorted(TRANSPOSED))
def test_transposed_convolutions_are_exact(case, follows):
    model, x = upscaler(follows, **TRANSPOSED[case]), images()
    if follows:
        randomize = np.random.default_rng(1).uniform
        norm = model.get_layer("norm")
        norm.set_weights([randomize(0.5, 1.5, w.shape) for w in norm.weights])
    student = student_of(model, 3, 4, pinned={}, x=x)
    snap_biases(student)
    lowered = lower(student)
    found = [d.off for d in local_deviations(lowered, [x]) if d.name == "up"]
    assert found == [0.0]
    run = TFLiteModel(lowered.content)
    wanted = student.predict(x, verbose=0)
    step = lowered.output_steps[0]
    off = np.abs(np.asarray(run.predict(x)) - wanted) / step
    assert off.max() < 1.01
    assert np.mean(off > 0.01) < 0.01


@pytest.mark.parametrize("storage", ["packed", "smallest"])
def test_transposed_kernels_stay_in_int8(storage):
    """The runtime has no INT4 kernel for them."""
    student = student_of(upscaler(strides=2), 2, 4, pinned={}, x=images())
    lowered = lower(student, storage)
    assert tensor_type(read_model(lowered.content), lowered.kernels[0].tensor) == "INT8"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dilation_rate": 2}, "with dilation"),
        (
            {"kernel_size": (2, 4), "strides": 3, "padding": "same"},
            "shorter than its stride, use padding='valid'",
        ),
    ],
)
def test_transposed_convolutions_that_round_twice_are_named_at_once(options, reason):
    model = upscaler(**options)
    with pytest.warns(UserWarning, match=f"'up' {reason}|'up' .*{reason}"):
        build_hypernet(model)


@pytest.mark.parametrize("options", [{}, {"strides": 2, "kernel_size": 2}])
def test_transposed_multiply_adds_are_those_of_brute_force(options):
    """Each pixel and input channel times each weight of its channel."""
    model = upscaler(**options)
    layer = model.get_layer("up")
    count = 0
    for _ in np.ndindex(5, 6):
        for _ in np.ndindex(*layer.kernel_size):
            count += 4 * 7
    assert layer_macs(model)["up"] == count
