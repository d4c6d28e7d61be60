"""The candidates of a budget, by hand."""

import keras
import pytest

from gmpq_tf.compression import suited_space

L = keras.layers


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(8, 3, name="first")(inputs)
    x = L.Conv2D(8, 3, name="middle")(x)
    return keras.Model(inputs, L.Dense(4, name="last")(L.Flatten()(x)))


@pytest.mark.parametrize(
    ("budget", "weights", "activations", "pinned"),
    [
        (None, (8,), (8,), None),
        ("60kB", (2, 4, 8), (8,), {}),
        ("2.5ms", (2, 4, 8), (8,), {}),
        ("file_bytes=W4A4", (2, 4, 8), (8,), None),
        ("W5A5", (4, 5, 6, 8), (4, 5, 6, 8), None),
        ("W2A2", (2, 3, 8), (2, 3, 8), None),
        ("W8A8", (7, 8), (7, 8), None),
        ("W4A8", (3, 4, 5, 8), (7, 8), None),
        # 5 % of 32 x 32 bits are those of 7.16 bits.
        ("5%", (6, 7, 8), (6, 7, 8), None),
        ("weight_bytes=1kB", (2, 3, 4, 5, 6, 8), (8,), {}),
        ("W4A4,60kB", (2, 3, 4, 5, 8), (3, 4, 5, 8), None),
    ],
)
def test_candidates(model, budget, weights, activations, pinned):
    space = suited_space(model, budget)
    assert (space.weight_bits, space.activation_bits) == (weights, activations)
    assert space.pinned == pinned


def test_operations_as_a_number(model):
    from gmpq_tf.cost import count_cost

    share = (5 / 32) ** 2
    operations = share * count_cost(model).bit_ops
    assert suited_space(model, operations) == suited_space(model, share)
    assert suited_space(model, share).weight_bits == (4, 5, 6, 8)
