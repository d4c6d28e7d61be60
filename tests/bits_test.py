import numpy as np
import pytest

from gmpq_tf.bits import (
    LayerBits,
    PolicyError,
    check_candidates,
    check_layer_bits,
    check_pinned,
    layer_candidates,
)
from gmpq_tf.space import SearchSpace

NAMES = ["first", "middle", "last"]


def test_check_pinned_of_one_layer():
    assert check_pinned(["only"], None) == {"only": (8, 8)}


@pytest.mark.parametrize("bits", [1, 9, 0, -2, 3.0, True, "4", None])
def test_rejects_other_bits(bits):
    with pytest.raises(PolicyError, match=r"conv1\.weight_bits"):
        check_layer_bits("conv1", (bits, 4))
    with pytest.raises(PolicyError, match="Received: activation_bits"):
        LayerBits(4, bits)


def test_candidates_are_sorted_plain_integers():
    bits = check_candidates("weight_bits", np.array([4, 2]))
    assert bits == (2, 4) and all(type(each) is int for each in bits)


@pytest.mark.parametrize("bits", [(), (2, 2), (1, 4), (2, 9), "234", 3, None, (2.0,)])
def test_rejects_other_candidates(bits):
    with pytest.raises(PolicyError, match="Received: "):
        check_candidates("weight_bits", bits)


@pytest.mark.parametrize("pinned", [None, {}, {"middle": (5, 6)}])
def test_candidates_of_layers_are_those_of_a_search_space(pinned):
    found = layer_candidates(NAMES, (4, 2), (3, 8), pinned)
    assert found == SearchSpace((4, 2), (3, 8), pinned).candidates(NAMES)
    assert list(found) == NAMES


def test_a_pinned_layer_may_be_given_as_bits_and_must_be_there():
    found = layer_candidates(NAMES, (2,), (2,), {"last": LayerBits(5, 6)})
    assert found["last"] == ((5,), (6,))
    with pytest.raises(PolicyError, match="Did you mean 'last'"):
        layer_candidates(NAMES, (2,), (2,), {"lost": (5, 6)})
    with pytest.raises(PolicyError, match=r"last\.weight_bits=9"):
        layer_candidates(NAMES, (2,), (2,), {"last": (9, 6)})
