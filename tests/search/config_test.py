"""Options of the risk are checked when they are made."""

import pytest

from gmpq_tf.search import RiskConfig


def test_defaults_are_the_papers():
    config = RiskConfig()
    assert (config.weight_capacity, config.activation_capacity) == (4, 6)
    assert config.top_k == 1000
    assert config.p is None


@pytest.mark.parametrize(
    "bad",
    [
        {"zeta": -1},
        {"eta": float("nan")},
        {"bit_ops_budget": 0},
        {"p": 0},
        {"top_k": 0},
        {"attribution_class": "labels"},
        {"map_size": "half"},
        {"weight_capacity": "4"},
    ],
    ids=lambda b: next(iter(b)),
)
def test_bad_values_name_themselves(bad):
    name = next(iter(bad))
    with pytest.raises(ValueError, match=f"Received: {name}="):
        RiskConfig(**bad)
