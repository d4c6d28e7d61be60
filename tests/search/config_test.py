"""Options of the risk are checked when they are made."""

import dataclasses
import inspect

import keras
import pytest

from gmpq_tf.search import PolicySearch, RiskConfig
from gmpq_tf.search.config import chosen_risk


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


def test_options_are_visible_where_a_search_is_made():
    """Each field of RiskConfig is a keyword of PolicySearch, with its default."""
    signature = inspect.signature(PolicySearch).parameters
    for field in dataclasses.fields(RiskConfig):
        assert signature[field.name].default == field.default


def test_an_unknown_option_is_answered_with_the_nearest():
    with pytest.raises(TypeError, match="Did you mean 'bit_ops_budget'"):
        chosen_risk(None, bitops_budget=0.01)
    with pytest.raises(TypeError, match=r"Received: etta=3.0\. Did you mean 'eta'"):
        PolicySearch(keras.Sequential([keras.Input((4,))]), etta=3.0)


def test_options_are_given_at_once_or_one_by_one():
    risk = RiskConfig(eta=3.0, top_k=7)
    assert chosen_risk(risk, eta=RiskConfig.eta) is risk
    assert chosen_risk(None, eta=3.0, top_k=7) == risk
    with pytest.raises(ValueError, match=r"not both ways.*and zeta=2\.0"):
        chosen_risk(risk, zeta=2.0)
    with pytest.raises(TypeError, match="must hold the options"):
        chosen_risk({"eta": 3.0})
