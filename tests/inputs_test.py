"""Pairing values with the inputs of a model, against calling stock Keras."""

import keras
import numpy as np
import pytest

from gmpq_tf.inputs import InputError, match_inputs

A, B, C = (np.full((2, n), float(n), "float32") for n in (1, 2, 3))


def symbolic(structure):
    """Keras inputs in the structure, named as the strings in it."""
    sizes = {"z": 1, "a": 2, "m": 3}
    return keras.tree.map_structure(
        lambda name: keras.Input((sizes[name],), name=name), structure
    )


def by_keras(structure, given):
    """What stock Keras gives each input."""
    inputs = symbolic(structure)
    leaves = keras.tree.flatten(inputs)
    model = keras.Model(inputs, {t.name: keras.ops.add(t, 0.0) for t in leaves})
    return {name: np.asarray(value) for name, value in model(given).items()}


def by_us(structure, given):
    names = keras.tree.flatten(structure)
    pairs = match_inputs(structure, given, names, lambda name: name)
    assert len(pairs) == len(names)
    return dict(pairs)


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.parametrize(
    ("structure", "given"),
    [
        ("z", A),
        ("z", [A]),
        ("z", {"z": A}),
        ("z", {"z": A, "more": B}),
        (["z", "a"], [A, B]),
        (["z", "a"], (A, B)),
        (["z", "a"], {"a": B, "z": A}),
        (["z", "a"], {"a": B, "z": A, "id": C}),
        (("z", "a", "m"), {"m": C, "a": B, "z": A}),
        ({"z": "z", "a": "a"}, {"a": B, "z": A}),
        ({"a": "a", "z": "z"}, [B, A]),
        ({"z": ["z", "a"], "m": "m"}, {"m": C, "z": [A, B]}),
        ([["z", "a"], "m"], [[A, B], C]),
        ([["z", "a"], "m"], ([A, B], C)),
    ],
)
def test_values_go_where_keras_puts_them(structure, given):
    wanted = by_keras(structure, given)
    received = by_us(structure, given)
    assert wanted.keys() == received.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(received[name], value)


def test_names_are_found_in_a_dict_with_more_than_the_model_takes():
    """Keras exchanges these, with a warning about the structure only."""
    received = by_us({"m": "m", "z": "z"}, {"a": B, "m": C, "z": A})
    assert received["m"] is C
    assert received["z"] is A


@pytest.mark.parametrize(
    ("structure", "given", "message"),
    [
        (["image", "age"], {"imgae": A, "age": B}, "Did you mean 'imgae'"),
        ({"image": "image"}, {"pixels": A}, "no 'image' among 'pixels'"),
        ("image", {"pixels": A}, "no 'image' among 'pixels'"),
        (["z", "a"], [A], "2 input.*one ndarray"),
        (["z", "a"], A, "one ndarray"),
        (["z", "a"], [A, B, C], "list of 3"),
        ("z", [A, B], "1 input.*list of 2"),
        (["z", "a", "m"], [{"a": A}, {"z": B, "m": C}], "tuple|list"),
    ],
)
def test_what_does_not_fit_is_refused(structure, given, message):
    with pytest.raises(InputError, match=message):
        by_us(structure, given)
