import keras
import numpy as np
import pytest

from gmpq_tf.graph import read_graph
from gmpq_tf.transform.forward import EAGER_BATCHES, LayerwiseRun, predictor
from tests.transform.models import MODELS, batch_of

PROBED = ("residual", "branches", "shared_layer", "two_inputs_two_outputs", "gates")


def probes(model):
    """Number of each call in the graph, and the model up to it."""
    graph = read_graph(model)
    seen = {}
    for number, call in enumerate(graph.calls):
        node = call.layer._inbound_nodes[seen.get(call.name, 0)]
        seen[call.name] = seen.get(call.name, 0) + 1
        yield number, keras.Model(model._inputs_struct, node.outputs[0])


@pytest.mark.parametrize("memory", [0, 20_000, 2**30])
@pytest.mark.parametrize("name", PROBED)
def test_outputs_are_those_of_the_model_up_to_there(name, memory):
    model = MODELS[name]()
    batches = [batch_of(model, 3), batch_of(model, 2, seed=1)]
    forward = LayerwiseRun(read_graph(model), batches, memory)
    for number, upto in probes(model):
        for found, batch in zip(forward.outputs(number), batches, strict=True):
            np.testing.assert_allclose(found, upto(batch), rtol=1e-5, atol=1e-5)
    assert (forward.start > 0) == (memory > 0)


def test_calls_may_be_left_out_and_layers_changed_on_the_way():
    model = MODELS["residual"]()
    graph, x = read_graph(model), batch_of(model, 2)
    names = [call.name for call in graph.calls]
    forward = LayerwiseRun(graph, [x])
    for name in ("inner", "last_conv"):
        layer = model.get_layer(name)
        (before,) = forward.outputs(names.index(name))
        layer.bias.assign(layer.bias + 1.0)
        after = np.asarray(keras.Model(model._inputs_struct, layer.output)(x))
        np.testing.assert_allclose(after, before + 1.0, rtol=1e-5, atol=1e-5)


def test_only_what_is_read_later_is_kept():
    model = MODELS["residual"]()
    graph = read_graph(model)
    forward = LayerwiseRun(graph, [batch_of(model, 2)])
    last = len(graph.calls) - 1
    list(forward.outputs(last))
    assert list(forward.kept[0]) == list(graph.calls[last].inputs)


@pytest.mark.parametrize("name", ["residual", "two_inputs_two_outputs"])
def test_a_predictor_gives_what_predict_gives_eagerly_and_compiled(name):
    model, batch = MODELS[name](), batch_of(MODELS[name](), 3)
    predict = predictor(model)
    for number in range(EAGER_BATCHES + 2):
        variable = model.trainable_variables[0]
        variable.assign(variable * 1.1)  # later weights count, also after tracing
        found, wanted = predict(batch), model.predict(batch, verbose=0)
        keras.tree.assert_same_structure(found, wanted)
        for mine, own in zip(*map(keras.tree.flatten, (found, wanted)), strict=True):
            assert isinstance(mine, np.ndarray), number
            np.testing.assert_allclose(mine, own, rtol=1e-5, atol=1e-5)
