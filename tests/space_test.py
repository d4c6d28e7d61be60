import json

import keras
import numpy as np
import pytest

from gmpq_tf.bits import uniform_bits
from gmpq_tf.policy import PolicyError
from gmpq_tf.space import SearchSpace

NAMES = ["conv1", "conv2", "conv3", "head"]
ENDS = ((8,), (8,))


def test_ends_are_pinned_unless_said_otherwise():
    middle = ((2, 3, 4), (2, 3, 4))
    expected = {"conv1": ENDS, "conv2": middle, "conv3": middle, "head": ENDS}
    candidates = SearchSpace().candidates(NAMES)
    assert candidates == expected
    assert list(candidates) == NAMES


def test_candidates_of_a_model_are_those_of_its_names():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(2, 3, name="conv1"),
            keras.layers.ReLU(name="relu"),
            keras.layers.Conv2D(2, 3, name="conv2"),
            keras.layers.DepthwiseConv2D(3, name="conv3"),
            keras.layers.Flatten(),
            keras.layers.Dense(2, name="head"),
        ]
    )
    space = SearchSpace((4, 2), (8,), pinned={"conv2": (5, 6)})
    assert space.candidates(model) == space.candidates(NAMES)


def test_pinned_replaces_the_default():
    space = SearchSpace((4, 2), (6,), pinned={"conv2": (5, 7)})
    free = ((2, 4), (6,))
    expected = {"conv1": free, "conv2": ((5,), (7,)), "conv3": free, "head": free}
    assert space.candidates(NAMES) == expected
    assert set(SearchSpace(pinned={}).candidates(NAMES).values()) == {
        ((2, 3, 4), (2, 3, 4))
    }


def test_unknown_pinned_layer_names_the_nearest():
    with pytest.raises(PolicyError, match="Did you mean 'conv2'"):
        SearchSpace(pinned={"conv_2": (8, 8)}).candidates(NAMES)


def test_candidates_are_kept_sorted_and_plain():
    space = SearchSpace(np.array([4, 2, 3]), [8, 2])
    assert space == SearchSpace((2, 3, 4), (2, 8))
    assert all(type(bits) is int for bits in space.weight_bits)
    assert hash(space) == hash(SearchSpace((2, 3, 4), (2, 8)))


@pytest.mark.parametrize(
    "bits", [(), (1, 2), (8, 9), (2, 2), (2.0,), (True,), "23", 4, None, ("2",)]
)
@pytest.mark.parametrize("name", ["weight_bits", "activation_bits"])
def test_rejects_other_candidates(name, bits):
    with pytest.raises(PolicyError, match=f"Received: {name}"):
        SearchSpace(**{name: bits})


def test_one_side_of_a_layer_may_be_pinned():
    space = SearchSpace((2, 4), (3,), pinned={"conv1": (None, 8), "head": (8, None)})
    candidates = space.candidates(NAMES)
    assert candidates["conv1"] == ((2, 4), (8,))
    assert candidates["head"] == ((8,), (3,))
    assert SearchSpace.from_config(json.loads(json.dumps(space.to_config()))) == space


def test_the_free_side_of_an_end_counts_eight_bits_in_a_uniform_policy():
    # So that "W3A3" is one budget, whether the stem's weights are searched or not.
    pinned = {"conv1": (None, 8), "conv2": (None, 5), "head": (8, 8)}
    assert uniform_bits(NAMES, 3, 3, pinned) == {
        "conv1": (8, 8),
        "conv2": (3, 5),
        "conv3": (3, 3),
        "head": (8, 8),
    }


@pytest.mark.parametrize(
    "pinned",
    [{"a": 8}, {"a": (8,)}, {"a": (1, 8)}, ["a"], {"a": (None, None)}, {"a": None}],
)
def test_rejects_other_pins(pinned):
    with pytest.raises(PolicyError, match="Received: pinned"):
        SearchSpace(pinned=pinned)


@pytest.mark.parametrize("pinned", [None, {}, {"conv1": (8, 4)}])
def test_config_round_trip_through_json(pinned):
    space = SearchSpace((2, 8), (3,), pinned)
    config = json.loads(json.dumps(space.to_config()))
    assert SearchSpace.from_config(config) == space
    assert config["pinned"] == (
        pinned and {name: list(bits) for name, bits in pinned.items()}
    )
