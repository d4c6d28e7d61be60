import pytest

from gmpq_tf.spelling import lookup, suggest


def test_names_the_nearest():
    assert suggest("conv_2", ["conv1", "conv2", "dense"]) == "Did you mean 'conv2'?"


def test_lists_all_where_none_is_near():
    assert suggest("xyz", ["conv1", "dense"]) == "Valid names: 'conv1', 'dense'."
    assert suggest("xyz", []) == "Valid names: none."


REGISTRY = {"pact": 1, "lsq": 2}


def test_returns_the_entry():
    assert lookup(REGISTRY, "lsq", "quantizer") == 2


def test_names_the_nearest_entry():
    with pytest.raises(ValueError, match=r"quantizer.*Received: 'packt'.*'pact'"):
        lookup(REGISTRY, "packt", "quantizer")


def test_lists_the_entries_where_none_is_near():
    with pytest.raises(ValueError, match="'pact', 'lsq'"):
        lookup(REGISTRY, "zzz", "quantizer")
