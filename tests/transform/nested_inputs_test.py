"""Nested models of several inputs, inlined: what stock Keras gives each input."""

import keras
import numpy as np
import pytest
from keras import layers

from gmpq_tf.graph import GraphError, read_graph
from gmpq_tf.transform.rewrite import copy_weights, rebuild

RANDOM = np.random.default_rng(0)
X = {name: RANDOM.uniform(0, 1, (4, 3)).astype("float32") for name in ("p", "q")}


def inner(kind):
    """`z - 2 a`; inputs in an order which is not that of their sorted names."""
    z, a = keras.Input((3,), name="z"), keras.Input((3,), name="a")
    inputs = {"list": [z, a], "tuple": (z, a), "dict": {"z": z, "a": a}}[kind]
    if kind == "sorted dict":
        inputs = {"a": a, "z": z}
    x = layers.Subtract()([z, layers.Rescaling(2.0)(a)])
    return keras.Model(inputs, x, name="inner")


CALLS = {
    "list": lambda p, q: [p, q],
    "tuple": lambda p, q: (p, q),
    "dict": lambda p, q: {"z": p, "a": q},
    "dict, other order": lambda p, q: {"a": q, "z": p},
    "dict with more": lambda p, q: {"a": q, "id": p, "z": p},
}
PAIRS = [
    (kind, call)
    for kind in ("list", "tuple", "dict")
    for call in CALLS
    if kind != "dict" or call in ("dict", "dict, other order")  # Keras refuses others
]


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize(("kind", "call"), PAIRS)
def test_nested_models_get_their_inputs_by_name(kind, call, keyword):
    p, q = keras.Input((3,), name="p"), keras.Input((3,), name="q")
    given, nested = CALLS[call](p, q), inner(kind)
    output = nested(inputs=given) if keyword else nested(given)
    check(keras.Model([p, q], layers.Dense(2)(output)))


def test_nested_twice_with_the_inputs_exchanged():
    p, q = keras.Input((3,), name="p"), keras.Input((3,), name="q")
    nested = inner("list")
    once, again = nested({"a": q, "z": p}), nested([q, p])
    check(keras.Model({"q": q, "p": p}, layers.Concatenate()([once, again])))


@pytest.mark.parametrize("number", [0, 1])
def test_what_nobody_reads_of_a_nested_model_is_left_out(number):
    p, q = keras.Input((3,), name="p"), keras.Input((3,), name="q")
    a = keras.Input((3,), name="a")
    names = ["first", "second"]
    ends = [layers.Dense(2, name=name)(layers.Dense(4)(a)) for name in names]
    some = keras.Model(a, ends)(p)[number]
    model = keras.Model([p, q], layers.Concatenate()([some, q]))
    assert names[1 - number] not in {call.name for call in read_graph(model).calls}
    check(model)


def test_a_nested_model_in_a_nested_model():
    p, q = keras.Input((3,), name="p"), keras.Input((3,), name="q")
    b, c = keras.Input((3,), name="b"), keras.Input((3,), name="c")
    middle = keras.Model({"c": c, "b": b}, inner("list")({"a": b, "z": c}))
    check(keras.Model([p, q], middle({"b": p, "c": q})))


def test_nested_outputs_of_a_dict_go_where_they_belong():
    p, q = keras.Input((3,), name="p"), keras.Input((3,), name="q")
    z, a = keras.Input((3,), name="z"), keras.Input((3,), name="a")
    both = keras.Model([z, a], {"z": layers.ReLU()(z), "a": layers.Rescaling(3.0)(a)})
    found = both({"a": q, "z": p})
    check(keras.Model([p, q], layers.Subtract()([found["z"], found["a"]])))


def check(model):
    graph = read_graph(model)
    copy = rebuild(
        graph,
        "copy",
        lambda call: type(call.layer).from_config(call.layer.get_config()),
    )
    copy_weights(graph, copy)
    np.testing.assert_allclose(copy(X), model(X), rtol=1e-6)


def test_names_that_a_dict_model_does_not_have_are_refused():
    """Keras takes the values in the order of the sorted keys: "more" for "z"."""
    p, q = keras.Input((3,), name="p"), keras.Input((3,), name="q")
    model = keras.Model([p, q], inner("dict")({"a": q, "more": p, "z": p}))
    with pytest.raises(GraphError, match="'more'"):
        read_graph(model)
