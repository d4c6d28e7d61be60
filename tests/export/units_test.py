"""What is computed together: parted once, as every reader of the graph needs it."""

import keras
import pytest

import gmpq_tf as gmpq
from gmpq_tf.export.float_model import float_graph
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.graph import read_graph
from gmpq_tf.transform.units import units
from tests.export.random_models import random_images, random_model, random_policy

L = keras.layers


@pytest.mark.parametrize("seed", range(12))
def test_every_call_is_in_one_unit_and_nothing_between_is_read(seed):
    model = random_model(seed)
    for graph in (
        read_graph(model),
        read_graph(gmpq.quantize_model(model, random_policy(model, seed))),
    ):
        found = units(graph)
        members = [id(call) for unit in found for call in unit.calls]
        assert sorted(members) == sorted(map(id, graph.calls))
        read = [index for call in graph.calls for index in call.inputs]
        for unit in found:
            inner = [call.outputs[0] for call in unit.calls[:-1]]
            assert not set(inner) & set(graph.outputs)
            assert all(read.count(index) == 1 for index in inner)
            for before, after in zip(unit.calls, unit.calls[1:], strict=False):
                assert after.inputs == before.outputs


@pytest.mark.parametrize("seed", range(4))
def test_kernels_of_a_file_are_those_of_units(seed):
    """Every writer folds the BatchNormalization that the units name, and no other."""
    model = random_model(seed)
    student = gmpq.quantize_model(model, random_policy(model, seed))
    gmpq.calibrate(student, random_images(model, 16, seed))
    lowered = lower(student)
    graph = read_graph(student)
    together = {u.call.name: u for u in units(graph) if u.call.role.name == "KERNEL"}
    results = {check.index for check in lowered.checks}
    assert {u.result for u in together.values()} <= results
    kept, kernels = float_graph(student)
    norms = {u.batch_norm.name for u in together.values() if u.batch_norm}
    have = {c.name for c in kept.calls if c.kind == "BatchNormalization"}
    every = {c.name for c in graph.calls if c.kind == "BatchNormalization"}
    assert have == every - norms
    assert len(kernels) == sum(c.role.name == "KERNEL" for c in graph.calls)


CHAINS = {
    "all": ([L.Conv2D(4, 1), L.BatchNormalization(), L.ReLU()], [3]),
    "norm first": ([L.BatchNormalization(), L.ReLU(), L.Conv2D(4, 1)], [2, 1]),
    "relu inside": (
        [L.Conv2D(4, 1, activation="relu"), L.BatchNormalization()],
        [1, 1],
    ),
    "relu before": ([L.Conv2D(4, 1), L.ReLU(), L.BatchNormalization()], [2, 1]),
    "two norms": ([L.Conv2D(4, 1)] + [L.BatchNormalization() for _ in "ab"], [2, 1]),
    "two relus": ([L.Conv2D(4, 1), L.ReLU(), L.ReLU(6.0)], [2, 1]),
    "slope": ([L.Conv2D(4, 1), L.ReLU(negative_slope=0.1)], [1, 1]),
    "gate": ([L.Dense(4), L.Activation("sigmoid"), L.Dense(4)], [1, 1, 1]),
    "pool between": ([L.Conv2D(4, 1), L.MaxPooling2D(), L.ReLU()], [1, 1, 1]),
}


@pytest.mark.parametrize("case", CHAINS)
def test_chains(case):
    layers, sizes = CHAINS[case]
    copies = [type(layer).from_config(layer.get_config()) for layer in layers]
    graph = read_graph(keras.Sequential([keras.Input((4, 4, 3)), *copies]))
    assert [len(unit.calls) for unit in units(graph)] == sizes


def test_what_the_model_returns_ends_a_unit():
    x = keras.Input((4, 4, 3))
    raw = L.Conv2D(4, 1)(x)
    graph = read_graph(keras.Model(x, [raw, L.BatchNormalization()(raw)]))
    assert [len(unit.calls) for unit in units(graph)] == [1, 1]


def test_an_addition_takes_the_relu_after_it_and_no_normalization():
    x = keras.Input((4, 4, 3))
    total = L.Add()([L.Conv2D(3, 1)(x), x])
    graph = read_graph(keras.Model(x, L.ReLU()(total)))
    assert [len(u.calls) for u in units(graph)] == [1, 2]
    total = L.Add()([L.Conv2D(3, 1)(x), x])
    graph = read_graph(keras.Model(x, L.BatchNormalization()(total)))
    assert [len(u.calls) for u in units(graph)] == [1, 1, 1]
