import warnings

import keras
import numpy as np
import pytest
from keras import layers

import gmpq_tf as gmpq
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.quantizers import InputQuantizer
from gmpq_tf.quantizers.observing import observers_now
from gmpq_tf.transform.calibrate import (
    CalibrationError,
    Observer,
    best_grid,
    input_quantizers,
    is_calibrated,
)
from tests.transform.models import MODELS, batch_of, plain, residual

X = np.random.default_rng(0).normal(0.2, 1, 4000).astype("float32")


def student_of(model, bits=4):
    return gmpq.quantize_model(model, BitwidthPolicy.uniform(model, bits, bits))


def error(values, step, low, high):
    """Mean squared error of the grid `low * step .. high * step`."""
    return np.mean(
        np.square(np.round(np.clip(values / step, low, high)) * step - values)
    )


def observed(values):
    observer = Observer(0)
    observer(values)
    return observer


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_step_has_the_least_error(bits, signed):
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    low = -high if signed else 0
    step, zero = best_grid(observed(X), InputQuantizer(bits, signed), 0)
    least = min(error(X, s, low, high) for s in np.geomspace(1e-3, 6, 3000) / high)
    assert zero == 0
    assert error(X, step, low, high) <= 1.03 * least


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_power_of_two_step_has_the_least_error(bits):
    quantizer = InputQuantizer(bits, True, power_of_two=True)
    step, _ = best_grid(observed(X), quantizer, 0)
    high = 2 ** (bits - 1) - 1
    errors = {2.0**n: error(X, 2.0**n, -high, high) for n in range(-14, 4)}
    assert errors[step] <= 1.03 * min(errors.values())


def test_placed_zero_covers_the_whole_interval():
    values = np.linspace(-1, 3, 100, dtype="float32")
    step, zero = best_grid(observed(values), InputQuantizer(8, None), 0)
    assert step == pytest.approx(4 / 255)
    assert zero == 64  # 1 / step = 63.75
    step, zero = best_grid(
        observed(values), InputQuantizer(8, None, power_of_two=True), 0
    )
    assert (step, zero) == (1 / 32, 32)  # the next power of two above 4 / 255


def test_placed_zero_of_pixels_is_the_first_code():
    pixels = np.arange(256, dtype="float32")
    assert best_grid(observed(pixels), InputQuantizer(8, None), 0) == (1.0, 0)


@pytest.mark.quick_rows(10)
@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("build", ["student", "hypernet"])
def test_every_range_is_set(name, build):
    model = MODELS[name]()
    made = student_of(model) if build == "student" else gmpq.build_hypernet(model)
    assert not is_calibrated(made)
    starts = [np.array(q.log2_range) for q in input_quantizers(made)]
    gmpq.calibrate(made, [(batch_of(model),)])
    assert is_calibrated(made)
    for quantizer, start in zip(input_quantizers(made), starts, strict=True):
        assert np.isfinite(quantizer.log2_range).all()
        assert (np.array(quantizer.log2_range) != start).all()


def test_layers_see_the_float_network():
    """Quantizers are off while others are calibrated: 2 bits before change nothing."""
    model, steps = plain(), []
    for bits in (2, 8):
        student = gmpq.quantize_model(
            model, BitwidthPolicy.uniform(model, bits, bits, pinned={"head": (8, 8)})
        )
        gmpq.calibrate(student, [(batch_of(model),)])
        steps.append(student.get_layer("head").input_quantizer.step())
    assert steps[0] == steps[1]


def test_quantizers_work_again_afterwards():
    student = student_of(plain(), 2)
    x = batch_of(student)
    gmpq.calibrate(student, [(x,)])
    assert observers_now() is None
    middle = student.get_layer("middle")
    assert not np.array_equal(middle.kernel_quantizer(middle.kernel), middle.kernel)
    assert len(np.unique(middle.input_quantizer(x))) <= 4


def test_batches_and_seed():
    model, student = residual(), student_of(residual())
    data = [(batch_of(model, seed=s),) for s in range(3)]

    def ranges(**kwargs):
        gmpq.calibrate(student, data, **kwargs)
        return [float(q.log2_range[0]) for q in input_quantizers(student)]

    assert ranges(seed=3) == ranges(seed=3)
    two = ranges(batches=2)
    data = data[:2]
    assert ranges() == two


def test_inputs_alone_labels_and_tensorflow_data():
    import tensorflow as tf

    student = student_of(plain())
    x = batch_of(student)
    ranges = []
    for data in (
        [x],
        [(x, np.zeros(len(x)))],
        tf.data.Dataset.from_tensors((x, np.zeros(len(x)))),
    ):
        gmpq.calibrate(student, data)
        ranges.append([float(q.log2_range[0]) for q in input_quantizers(student)])
    assert ranges[0] == ranges[1] == ranges[2]


@pytest.mark.parametrize("value", [0.0, 0.7, -0.7, 1e-30, 1e10])
def test_constant_images(value):
    student = student_of(residual())
    x = np.full((4, 8, 8, 3), value, "float32")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "These tensors are zero")
        gmpq.calibrate(student, [(x,)])
    for quantizer in input_quantizers(student):
        assert np.isfinite(quantizer.step()) and quantizer.step() > 0
    if abs(value) < 1:
        assert np.isfinite(student(x)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_values_that_are_not_finite_are_refused(value, place):
    student = student_of(plain())
    data = [batch_of(student, 4, seed=s) for s in range(3)]
    data[place][1, 2, 3, 0] = value
    with pytest.raises(CalibrationError, match=r"must be finite.*Check the images"):
        gmpq.calibrate(student, [(x,) for x in data])
    assert observers_now() is None
    assert not is_calibrated(student)


def test_empty_data_is_refused():
    with pytest.raises(CalibrationError, match="at least one batch"):
        gmpq.calibrate(student_of(plain()), [])


def test_no_batches_is_refused():
    student = student_of(plain())
    with pytest.raises(CalibrationError, match="at least one batch"):
        gmpq.calibrate(student, [(batch_of(student),)], batches=0)


def test_model_without_quantizers_is_refused():
    with pytest.raises(CalibrationError, match="Pass what quantize_model"):
        gmpq.calibrate(plain(), [(batch_of(plain()),)])


def test_statistics_and_weights_are_left_alone():
    student = student_of(plain())
    names = ("kernel", "bias", "norm")
    before = {
        w.path: np.array(w)
        for w in student.weights
        if any(n in w.path for n in names) and "quantizer" not in w.path
    }
    gmpq.calibrate(student, [(batch_of(student),)])
    after = {w.path: np.array(w) for w in student.weights}
    assert len(before) == 3 + 4 + 2
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value)


def test_a_large_tensor_is_sampled_but_its_extremes_are_kept():
    observer = Observer(0)
    values = np.random.default_rng(1).normal(size=(64, 32, 32, 3)).astype("float32")
    values[3, 4, 5, 1], values[9, 9, 9, 0] = -50, 60
    observer(values)
    assert observer.sample.size < values.size / 5
    assert (observer.sample.min(), observer.sample.max()) == (-50, 60)


@pytest.mark.parametrize("scale", ["-1..1", "0..255", "0..1"])
def test_no_pixel_lies_between_two_codes(scale):
    pixels = np.arange(256, dtype="float32")
    values = {"-1..1": pixels / 127.5 - 1, "0..255": pixels, "0..1": pixels / 255}[
        scale
    ]
    step, zero = best_grid(observed(values), InputQuantizer(8, None), 0)
    codes = values.astype("float64") / step
    halves = np.abs(codes - np.floor(codes) - 0.5)
    assert halves.min() > 2e-4
    stored = np.floor(codes + 0.5) + zero
    assert stored.min() >= 0 and stored.max() <= 255
    if scale != "-1..1":  # where pixels can be codes they are
        np.testing.assert_array_equal(stored, pixels)


def test_scaled_inputs_do_not_lie_on_halves():
    """Pixels from 0 to 255, put on -1 to 1 inside the model: zero between two codes."""
    inputs = keras.Input((4, 4, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(inputs)
    x = layers.Conv2D(4, 1, name="first")(layers.ZeroPadding2D(1, name="pad")(x))
    student = student_of(keras.Model(inputs, layers.Flatten(name="flat")(x)), 8)
    pixels = np.random.default_rng(0).uniform(0, 255, (9, 4, 4, 3)).astype("float32")
    gmpq.calibrate(student, [(pixels,)])
    step = student.get_layer("image_quantizer").step()
    values = np.unique(np.floor(pixels / step + 0.5)) * step / 127.5 - 1
    scaled = values / student.get_layer("first").input_quantizer.step() + 0.5
    assert np.mean(np.abs(scaled - np.round(scaled)) < 0.01) < 0.05


@pytest.mark.parametrize("signed", [False, True, None])
@pytest.mark.parametrize("bits", [2, 8])
def test_tensor_of_zeros_gets_the_range_6(bits, signed):
    """The range before calibration, that of ReLU6; a power of two nearest to it."""
    limit = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    step, zero = best_grid(observed(np.zeros(9)), InputQuantizer(bits, signed), 0)
    assert step == pytest.approx(6 / limit, rel=0.01) and zero == 0
    nested = InputQuantizer(bits, signed, power_of_two=True)
    step, _ = best_grid(observed(np.zeros(9)), nested, 0)
    rounded = np.ceil if signed is None else np.round
    assert step == 2.0 ** rounded(np.log2(6 / limit))


def test_dead_layer_is_named_and_may_come_alive():
    model = plain()
    first = model.get_layer("first")  # a ReLU follows: zero for every image
    first.set_weights([np.zeros_like(w) for w in first.get_weights()])
    student, x = student_of(model, 4), batch_of(model, 8)
    with pytest.warns(UserWarning, match=r"all calibration data: middle/input_quant"):
        gmpq.calibrate(student, [(x,)])
    assert np.isfinite(student(x)).all()
    quantizer = student.get_layer("middle").input_quantizer
    # The grid of range 6 has room for what the layer may return one day.
    grown = quantizer(np.array([[1.0, 5.0]], "float32"))
    np.testing.assert_allclose(grown, [[1.2, 5.2]], rtol=1e-5)


@pytest.mark.slow
def test_zero_kernel_trains():
    """With a step next to nothing it would be clipped to nothing for ever."""
    model = residual()
    inner = model.get_layer("inner")
    inner.kernel.assign(np.zeros(inner.kernel.shape))
    student, x = student_of(model, 4), batch_of(model, 8)
    gmpq.calibrate(student, [(x,)])
    y = keras.utils.to_categorical(np.arange(8) % 4, 4)
    student.compile(keras.optimizers.Adam(0.02), "mse")
    losses = student.fit(x, y, batch_size=8, epochs=20, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert all(np.isfinite(w).all() for w in student.get_weights())
    inner = student.get_layer("inner")
    trained = inner.kernel_quantizer(np.array(inner.kernel))
    assert np.abs(trained).max() > 0.5 * np.abs(np.array(inner.kernel)).max() > 0.01


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_an_empty_batch_is_left_out(empty):
    model = plain()
    student, again = student_of(model), student_of(model)
    x = batch_of(model)
    batches = [x, x[:3]]
    gmpq.calibrate(student, batches)
    batches.insert(empty, x[:0])
    gmpq.calibrate(again, batches)
    steps = [[q.step() for q in input_quantizers(s)] for s in (student, again)]
    assert steps[0] == steps[1]
    with pytest.raises(CalibrationError, match="at least one batch"):
        gmpq.calibrate(student, [x[:0]])


def test_an_array_is_a_data_set():
    model = plain()
    student = student_of(model)
    gmpq.calibrate(student, batch_of(model))
    assert is_calibrated(student)


@pytest.mark.parametrize("front", ["Normalization", "BatchNormalization"])
def test_columns_that_a_common_grid_loses_are_named(front):
    """They are lost: the outputs are far from those of the float model."""
    random = np.random.default_rng(5)
    for sizes, first in (([1, 300, 300, 0], 0), ([200, 300, 300, 0], None)):
        table = (random.normal(size=(256, 4)) * sizes).astype("float32")
        inputs = keras.Input((4,))
        norm = getattr(layers, front)(name="norm")
        model = keras.Model(inputs, layers.Dense(3)(norm(layers.Reshape((4,))(inputs))))
        if front == "Normalization":
            norm.adapt(table)
        else:
            norm.moving_variance.assign(np.square(sizes))
        student = student_of(model, 8)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gmpq.calibrate(student, table)
        said = [str(w.message) for w in caught if "vary by more" in str(w.message)]
        wanted = f"1 of 4 channels of 'norm', the first channel {first},"
        assert [wanted in text for text in said] == [True] * (first is not None)
        wanted = np.asarray(model(table))
        error = np.std(np.asarray(student(table)) - wanted) / np.std(wanted)
        assert error > 0.15 if said else error < 0.05
