import math

import numpy as np
import pytest

from gmpq_tf.bits import LayerBits, PolicyError
from gmpq_tf.policy.diff import diff_layers, rank_correlation


def layers(weight_bits, activation_bits=None, names="abcdefgh"):
    activation_bits = activation_bits or [10 - bits for bits in weight_bits]
    pairs = zip(weight_bits, activation_bits, strict=True)
    return {n: LayerBits(*p) for n, p in zip(names, pairs, strict=False)}


def mean_ranks(values):
    """1-based ranks, tied values sharing the mean of theirs: by counting."""
    return [
        sum(other < value for other in values)
        + (1 + sum(other == value for other in values)) / 2
        for value in values
    ]


def test_diff_says_what_changed_and_what_is_missing():
    before = layers([2, 3, 4], [4, 4, 4])
    after = {"b": LayerBits(5, 4), "c": LayerBits(4, 4), "d": LayerBits(2, 2)}
    diff = diff_layers(before, after)
    assert diff.shared == 2
    assert diff.changed == {"b": (LayerBits(3, 4), LayerBits(5, 4))}
    assert (diff.only_before, diff.only_after) == (("a",), ("d",))
    assert diff
    assert str(diff).splitlines() == [
        "1 of 2 shared layers differ",
        "layer  weight bits  activation bits",
        "-----  -----------  ---------------",
        "b           3 -> 5                4",
        "only before: a",
        "only after: d",
    ]


def test_equal_policies_have_no_diff():
    diff = diff_layers(layers([2, 3]), layers([2, 3]))
    assert not diff
    assert str(diff) == "0 of 2 shared layers differ"


def test_without_ties_it_is_the_closed_form():
    before, after = [2, 3, 4, 5, 6], [3, 2, 4, 6, 5]
    distance = sum((b - a) ** 2 for b, a in zip(before, after, strict=True))
    expected = 1 - 6 * distance / (5 * (5**2 - 1))
    found = rank_correlation(layers(before), layers(after))
    assert found.weight_bits == pytest.approx(expected)
    assert found.activation_bits == pytest.approx(expected)
    assert found.layers == 5


def test_tied_layers_share_the_mean_rank():
    random = np.random.default_rng(3)
    before, after = random.integers(2, 5, (2, 8)).tolist()
    expected = np.corrcoef(mean_ranks(before), mean_ranks(after))[0, 1]
    found = rank_correlation(layers(before), layers(after))
    assert found.weight_bits == pytest.approx(expected)


def test_order_of_layers_does_not_matter_and_reversal_is_minus_one():
    before = layers([2, 3, 4, 5], [5, 4, 3, 2])
    assert rank_correlation(before, dict(reversed(before.items()))).weight_bits == 1
    opposite = layers([8, 7, 6, 5], [2, 3, 4, 5])
    assert rank_correlation(before, opposite).weight_bits == pytest.approx(-1)


def test_only_shared_layers_count():
    before = layers([2, 3, 4], names="abc") | layers([8, 2], names="xy")
    after = layers([3, 4, 5], names="abc") | layers([2, 8], names="zw")
    found = rank_correlation(before, after)
    assert (found.layers, found.weight_bits) == (3, pytest.approx(1))


def test_constant_bits_have_no_rank():
    found = rank_correlation(layers([4, 4, 4], [2, 3, 4]), layers([2, 3, 4], [2, 3, 4]))
    assert math.isnan(found.weight_bits) and found.activation_bits == 1
    assert "weight bits undefined" in str(found) and "bits 1.000" in str(found)
    one = rank_correlation(layers([4]), layers([3]))
    assert math.isnan(one.weight_bits) and one.layers == 1


def test_policies_without_a_shared_layer_are_refused():
    after = layers([2, 3], names=["backbone_conv", "head"])
    with pytest.raises(PolicyError, match=r"share.*mean 'backbone_conv'.*rename"):
        rank_correlation(layers([2, 3], names=["bone_conv", "x"]), after)
