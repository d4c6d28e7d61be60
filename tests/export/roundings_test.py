"""Why some operators of TFLite are not used: what its kernels make of every code.

The oracle is NumPy in float64, rounded as Keras rounds to a grid: halves upwards.
"""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from gmpq_tf.export.tflite.flatbuffer import FileBuilder, Quantization
from gmpq_tf.export.tflite.runtime import TFLiteModel

KERNELS = ("xnnpack", "reference")
CODES: np.ndarray = np.arange(-128, 128, dtype="int8")[None]


def computed(code, version, options, data, after, grids, operands=()):
    """Codes that each runtime's kernels compute, int64, by the kernels' name."""
    file = FileBuilder()
    source = file.tensor("x", data.shape, "INT8", grids[0])
    target = file.tensor("y", after, "INT8", grids[1])
    inputs = [source, *(make(file) for make in operands)]
    file.operator(code, inputs, [target], options, version)
    content = file.finish({"x": source}, {"y": target}, {})
    return {
        kernels: TFLiteModel(content, kernels=kernels).stored([data])[0].astype(int)
        for kernels in KERNELS
    }


def on_grid(values, grid):
    codes = np.floor(values / grid.scale[0] + 0.5) + grid.zero_point
    return np.clip(codes, -128, 127).astype(int)


def draws(count=12):
    rng = np.random.default_rng(0)
    for _ in range(count):
        slope = float(np.float32(rng.uniform(0.05, 0.9)))
        steps = rng.uniform(0.01, 0.1, 2).astype("float32")
        zeros = rng.integers(-100, 100, 2)
        pairs = zip(steps, zeros, strict=True)
        yield slope, [Quantization((float(s),), int(z)) for s, z in pairs]


@pytest.mark.parametrize("code", ["LEAKY_RELU", "PRELU"])
def test_slopes_are_rounded_and_codes_with_them(code):
    off = dict.fromkeys(KERNELS, 0)
    apart = 0
    for slope, grids in draws():
        options, version, operands = None, 1, []
        if code == "LEAKY_RELU":
            version, options = 2, schema.LeakyReluOptionsT()
            options.alpha = slope
        else:
            meaning = Quantization((slope / 127,))
            codes = np.array([127], np.int8)
            operands = [lambda f, q=meaning, c=codes: f.constant("slope", c, q)]
        found = computed(code, version, options, CODES, CODES.shape, grids, operands)
        values = (CODES.astype("float64") - grids[0].zero_point) * grids[0].scale[0]
        wanted = on_grid(np.where(values < 0, slope * values, values), grids[1])
        for kernels in KERNELS:
            gap = np.abs(found[kernels] - wanted)
            assert gap.max() <= 1
            off[kernels] += int(gap.sum())
        apart += int(np.sum(found["xnnpack"] != found["reference"]))
    assert all(count > 0 for count in off.values())
    assert (apart > 0) == (code == "LEAKY_RELU")


@pytest.mark.parametrize("size", [2, 4])
def test_bilinear_halves_are_rounded_otherwise_by_each_runtime(size):
    data = np.random.default_rng(0).integers(-128, 128, (1, 9, 9, 8)).astype("int8")
    after = (1, 9 * size, 9 * size, 8)
    layer = keras.layers.UpSampling2D(size, interpolation="bilinear")
    exact = np.asarray(layer(data.astype("float32")))
    grid = Quantization((0.125,))
    options = schema.ResizeBilinearOptionsT()
    options.halfPixelCenters = True
    sizes = [lambda f: f.integers(after[1:3])]
    found = computed("RESIZE_BILINEAR", 3, options, data, after, [grid] * 2, sizes)
    wanted = np.floor(exact + 0.5).astype(int)
    halves = exact - np.floor(exact) == 0.5
    for codes in found.values():
        np.testing.assert_array_equal(codes[~halves], wanted[~halves])
    assert np.mean(found["xnnpack"] != found["reference"]) > 0.01
