import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.transform.precision import computing_in

NARROW = ("mixed_bfloat16", "mixed_float16")


def classifier():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 1))
    for name in ("first", "second", "third"):
        x = keras.layers.Conv2D(8, 3, padding="same", name=name)(x)
        x = keras.layers.BatchNormalization(name=f"{name}_norm")(x)
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x), name="net")


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 64)
    x = rng.random((64, 8, 8, 1)).astype("float32")
    for image, label in zip(x, y, strict=True):
        image[:, 2 * label : 2 * label + 4] += 1.0
    return x, y


def quantized(data):
    model = classifier()
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
    gmpq.calibrate(student, [data[0]])
    return student


def losses(model, data, precision):
    optimizer = keras.optimizers.SGD(0.05)
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, loss=keras.losses.SparseCategoricalCrossentropy(True))
    with computing_in(model, precision):
        return model.fit(*data, epochs=3, verbose=0, shuffle=False).history["loss"]


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("make", [lambda data: classifier(), quantized])
@pytest.mark.parametrize("precision", NARROW)
def test_narrow_training_follows_the_wide_one(make, precision, data):
    wide = losses(make(data), data, "float32")
    narrow = losses(make(data), data, precision)
    assert wide[-1] < wide[0]
    assert narrow == pytest.approx(wide, rel=0.02)
    assert narrow != wide


@pytest.mark.slow
def test_a_search_in_bfloat16_follows_the_wide_one(data):
    found = []
    for precision in ("float32", "mixed_bfloat16"):
        search = gmpq.PolicySearch(classifier(), eta=1.0)
        search.calibrate([data[0]])
        found.append(losses(search, data, precision))
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert found[1] != found[0]


@pytest.mark.parametrize("precision", NARROW)
def test_layers_compute_in_it_inside_and_quantizers_do_not(precision, data):
    student = quantized(data)
    layer = student.get_layer("second")
    dtype = precision.removeprefix("mixed_")
    with computing_in(student, precision):
        assert layer.compute_dtype == layer(np.zeros((1, 8, 8, 8), dtype)).dtype
        assert layer.compute_dtype == dtype
        assert layer.input_quantizer.compute_dtype == "float32"
        assert layer.kernel_quantizer.compute_dtype == "float32"
    assert {weight.dtype for weight in student.weights} == {"float32"}
    assert {part.compute_dtype for part in student.layers} == {"float32"}


def test_what_is_saved_afterwards_is_the_same_model(data, tmp_path):
    student = quantized(data)
    with computing_in(student, "mixed_bfloat16"), pytest.raises(KeyError):
        raise KeyError  # restored however the block ends
    student.save(tmp_path / "student.keras")
    again = keras.models.load_model(tmp_path / "student.keras")
    assert {part.compute_dtype for part in again.layers} == {"float32"}
    np.testing.assert_array_equal(again.predict(data[0]), student.predict(data[0]))
