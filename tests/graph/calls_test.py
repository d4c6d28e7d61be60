import keras
from keras import layers

from gmpq_tf.graph import Ref, fill, free_name, read_graph


def test_producers_and_consumers():
    inputs = keras.Input((4,), name="x")
    hidden = layers.Dense(4, name="d")(inputs)
    graph = read_graph(
        keras.Model(inputs, layers.Multiply(name="square")([hidden, hidden]))
    )
    assert graph.producers()[graph.outputs[0]].name == "square"
    assert graph.inputs[0] not in graph.producers()
    (middle,) = graph.calls[0].outputs
    assert [call.name for call in graph.consumers()[middle]] == ["square", "square"]


def test_fill():
    structure = ([Ref(1), 2, "text"], {"a": (Ref(0), None)}, slice(1, None))
    assert fill(structure, {0: "zero", 1: "one"}) == (
        ["one", 2, "text"],
        {"a": ("zero", None)},
        slice(1, None),
    )


def test_free_name():
    assert free_name("a", {"b"}) == "a"
    assert free_name("a", {"a"}) == "a_1"
    assert free_name("a", {"a", "a_1", "a_2"}) == "a_3"
