"""Layers that stay float: what they cost, by hand."""

import json

import keras
import numpy as np
import pytest
from keras import layers, ops

import gmpq_tf as gmpq
from gmpq_tf.budget import BudgetError
from gmpq_tf.cost import bit_ops_range, count_cost
from gmpq_tf.float_layers import float_layers
from gmpq_tf.train.cost import cost_records, format_csv, format_json

FULL = 32 * 32


class OwnConv(layers.Conv2D):
    """Somebody's subclass of a layer of Keras."""


class OwnLine(layers.Conv1D):
    """Likewise, of lines."""


class OwnProduct(layers.Layer):
    """Somebody's layer with a matrix."""

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 5))

    def call(self, x):
        return x @ self.matrix


# Layer, shape it reads, multiply-adds by hand.
CASES = {
    "own Conv1D": (lambda: OwnLine(6, 3), (10, 4), 8 * 3 * 4 * 6),
    "Conv3D": (lambda: layers.Conv3D(2, 3), (5, 5, 5, 3), 27 * 27 * 3 * 2),
    "Conv3DTranspose": (
        lambda: layers.Conv3DTranspose(5, (1, 3, 3), strides=(1, 2, 2)),
        (1, 4, 6, 2),
        24 * 9 * 2 * 5,
    ),
    "EinsumDense": (
        lambda: layers.EinsumDense("abc,cde->abde", output_shape=(7, 3, 5)),
        (7, 4),
        7 * 4 * 3 * 5,
    ),
    "ellipsis": (
        lambda: layers.EinsumDense("...x,xy->...y", output_shape=5),
        (7, 2, 4),
        7 * 2 * 4 * 5,
    ),
    "LSTM": (lambda: layers.LSTM(6), (9, 4), 9 * (4 * 24 + 6 * 24)),
    "GRU": (lambda: layers.GRU(6), (9, 4), 9 * (4 * 18 + 6 * 18)),
    "Bidirectional": (
        lambda: layers.Bidirectional(layers.LSTM(6)),
        (9, 4),
        2 * 9 * (4 * 24 + 6 * 24),
    ),
    "TimeDistributed": (
        lambda: layers.TimeDistributed(layers.Conv2D(3, 3)),
        (5, 6, 6, 2),
        5 * 16 * 9 * 2 * 3,
    ),
    "Embedding": (lambda: layers.Embedding(20, 6), (9,), 0),
    "channels_first": (
        lambda: layers.Conv3DTranspose(5, (1, 3, 3), data_format="channels_first"),
        (2, 1, 4, 6),
        24 * 9 * 2 * 5,
    ),
    "own_subclass": (lambda: OwnConv(5, 3), (6, 6, 2), 16 * 9 * 2 * 5),
}


MATRIX = np.ones((4, 5), "float32")
# Products of two arrays x [7, 4], or of one and a constant: multiply-adds by hand.
PRODUCTS = {
    "Dot of steps": (lambda x: layers.Dot(1)([x, x]), 7 * 4 * 4),
    "Dot of features": (lambda x: layers.Dot((2, 2))([x, x]), 7 * 7 * 4),
    "matmul": (lambda x: ops.matmul(x, MATRIX), 7 * 4 * 5),
    "matmul, constant first": (
        lambda x: ops.matmul(np.ones((9, 7), "float32"), x),
        9 * 7 * 4,
    ),
    "dot": (lambda x: ops.dot(x, MATRIX), 7 * 4 * 5),
    "einsum": (lambda x: ops.einsum("bij,bik->bjk", x, x), 7 * 4 * 4),
    "einsum, constant": (lambda x: ops.einsum("bij,jk->bik", x, MATRIX), 7 * 4 * 5),
    "conv": (lambda x: ops.conv(x, np.ones((3, 4, 6), "float32")), 5 * 3 * 4 * 6),
}
# Of lines: searched layers, likewise.
LINES = {
    "Conv1D": (lambda: layers.Conv1D(6, 3), (10, 4), 8 * 3 * 4 * 6),
    "causal": (lambda: layers.Conv1D(6, 3, padding="causal"), (10, 4), 10 * 3 * 4 * 6),
    "grouped": (lambda: layers.Conv1D(6, 3, groups=2), (10, 4), 8 * 3 * 2 * 6),
    "Conv1DTranspose": (lambda: layers.Conv1DTranspose(5, 3), (7, 2), 7 * 3 * 2 * 5),
    "DepthwiseConv1D": (
        lambda: layers.DepthwiseConv1D(3, depth_multiplier=2),
        (10, 4),
        8 * 3 * 4 * 2,
    ),
    "SeparableConv1D": (
        lambda: layers.SeparableConv1D(6, 3),
        (10, 4),
        8 * (3 * 4 + 4 * 6),
    ),
}


def model_of(layer, shape):
    inputs = keras.Input(shape)
    x = layers.Flatten()(layer(inputs))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


@pytest.mark.parametrize("name", sorted(CASES))
def test_macs_are_those_counted_by_hand(name):
    make, shape, macs = CASES[name]
    layer = make()
    model = model_of(layer, shape)
    dense = int(np.prod(model.get_layer("head").kernel.shape))
    cost = count_cost(model, gmpq.BitwidthPolicy.uniform(model, 4, 4, {}))
    assert [(c.name, c.macs) for c in cost.float_layers] == [(layer.name, macs)]
    assert cost.macs == macs + dense and cost.uncounted == ()
    assert cost.bit_ops == macs * FULL + dense * 16
    assert cost.float_layers[0].weight_bytes == 4 * layer.count_params()
    assert cost.params == model.count_params()
    assert cost.other_params == 3 and cost.other_bytes == 12


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_macs_of_products_are_those_counted_by_hand(name):
    make, macs = PRODUCTS[name]
    (found,) = float_layers(model_of(make, (7, 4)))[:1]
    assert (found.macs, found.params) == (macs, 0)


@pytest.mark.parametrize("name", sorted(LINES))
def test_macs_of_searched_lines_are_those_counted_by_hand(name):
    make, shape, macs = LINES[name]
    layer = make()
    model = model_of(layer, shape)
    dense = int(np.prod(model.get_layer("head").kernel.shape))
    cost = count_cost(model, gmpq.BitwidthPolicy.uniform(model, 3, 4, {}))
    assert cost.float_layers == () and cost.macs == macs + dense
    assert sum(c.macs for c in cost.layers if c.name != "head") == macs
    assert cost.bit_ops == (macs + dense) * 12
    assert cost.params == model.count_params()


def given_alike(heads, query, value, mask):
    return heads(query, value, attention_mask=mask)


def given_by_name(heads, query, value, mask):
    return heads(attention_mask=mask, value=value, key=value, query=query)


@pytest.mark.parametrize("give", [given_alike, given_by_name])
def test_attention_is_counted(give):
    query, value = keras.Input((5, 6)), keras.Input((7, 8))
    heads, mask = layers.MultiHeadAttention(2, 3, value_dim=4), keras.Input((5, 7))
    x = layers.Attention()([give(heads, query, value, mask), query])
    model = keras.Model([query, value, mask], x)
    projections = 5 * 6 * 3 + 7 * 8 * 3 + 7 * 8 * 4 + 5 * 4 * 6
    expected = [2 * (projections + 5 * 7 * (3 + 4)), 5 * 5 * (6 + 6)]
    assert [layer.macs for layer in float_layers(model)] == expected


def test_what_cannot_be_counted_is_named_and_warned_of():
    model = model_of(OwnProduct(name="mine"), (6,))
    with pytest.warns(UserWarning, match=r"not known.*mine .*OwnProduct, not counted"):
        cost = count_cost(model)
    assert cost.uncounted == ("mine",)
    with pytest.warns(UserWarning, match="mine"):
        gmpq.build_hypernet(model)


def test_channels_first_costs_what_channels_last_does():
    counts = []
    for order, shape in (
        ("channels_last", (12, 10, 3)),
        ("channels_first", (3, 12, 10)),
    ):
        inputs = keras.Input(shape)
        x = layers.Conv2D(6, 3, strides=2, data_format=order, name="a")(inputs)
        x = layers.DepthwiseConv2D(3, data_format=order, name="b")(x)
        x = layers.SeparableConv2D(4, 2, data_format=order, name="c")(x)
        model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
        cost = count_cost(model)
        counts.append([(c.macs, c.input_elements) for c in cost.layers])
    assert counts[0] == counts[1]
    assert counts[0][0][0] == 5 * 4 * 9 * 3 * 6


@pytest.fixture(scope="module")
def mixed():
    """Somebody's Conv1D of 480 MACs, and Dense layers of 160, 8 and 4."""
    inputs = keras.Input((12, 4))
    x = layers.Flatten()(OwnLine(4, 3, name="float")(inputs))
    x = layers.Dense(4, name="a")(x)
    x = layers.Dense(2, name="b")(x)
    return keras.Model(inputs, layers.Dense(2, name="c")(x))


def test_budgets_include_float_layers(mixed):
    full = (480 + 172) * FULL
    low, high = bit_ops_range(mixed, gmpq.SearchSpace((2, 4), (2, 4), pinned={}))
    assert (low, high) == (480 * FULL + 172 * 4, 480 * FULL + 172 * 16)
    policy = gmpq.BitwidthPolicy.random(mixed, 480 * FULL + 172 * 9, 0, pinned={})
    assert count_cost(mixed, policy).bit_ops <= 480 * FULL + 172 * 9
    with pytest.raises(BudgetError, match="stay float take"):
        gmpq.PolicySearch(mixed, bit_ops_budget=0.5, eta=0.0)
    budget = 480 * FULL + 172 * 10
    space = gmpq.SearchSpace((2, 3, 4), (2, 3, 4), pinned={})
    search = gmpq.PolicySearch(mixed, space, bit_ops_budget=budget / full, eta=0.0)
    assert search.full_bit_ops() == full
    assert search.budget == pytest.approx(budget)
    assert float(search.expected_bit_ops()) == pytest.approx(
        480 * FULL + 172 * 9, rel=1e-6
    )
    search.compile(loss="mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(8, 12, 4)).astype("float32")
    search.fit(x, np.zeros((8, 2)), verbose=0)
    assert 480 * FULL + 172 * 9 <= count_cost(mixed, search.policy()).bit_ops <= budget


def test_tables_name_float_layers(mixed):
    cost = count_cost(mixed, gmpq.BitwidthPolicy.uniform(mixed, 4, 4))
    records = cost_records(cost)
    row = next(row for row in records if row["kind"] == "float")
    assert (row["name"], row["weight_bits"], row["macs"]) == ("float", 32, 480)
    assert sum(row["bit_ops_share"] or 0 for row in records[:-1]) == pytest.approx(1)
    assert "float,float,32,32,480" in format_csv(records)
    content = json.loads(format_json(records, mixed, None, None))
    assert [row["name"] for row in content["float_layers"]] == ["float"]
