import keras
import numpy as np
import pytest

from export.convolutions import keras_layout, stored_layout

L = keras.layers


@pytest.mark.parametrize(
    ("layer", "stored"),
    [
        (L.Conv2D(5, (3, 2)), (5, 3, 2, 4)),
        (L.DepthwiseConv2D((3, 2), depth_multiplier=5), (1, 3, 2, 20)),
        (L.Dense(5), (5, 4)),
    ],
)
def test_layouts_round_trip(layer, stored):
    layer.build((None, 8, 8, 4))
    kind, kernel = type(layer).__name__, np.asarray(layer.kernel)
    moved, axis = stored_layout(kind, kernel)
    assert moved.shape == stored
    assert axis == (3 if kind == "DepthwiseConv2D" else 0)
    np.testing.assert_array_equal(keras_layout(kind, moved, kernel.shape), kernel)
