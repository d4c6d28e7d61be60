"""Which layers stand at the ends of a model."""

import keras
import pytest
from keras import layers

from gmpq_tf.budget import BIT_OPS
from gmpq_tf.cost import count_cost
from gmpq_tf.ends import end_names
from gmpq_tf.limits import limits_of
from gmpq_tf.models import build_model
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.space import SearchSpace


def two_heads():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="stem", activation="relu")(inputs)
    x = layers.Conv2D(4, 3, name="body", activation="relu")(x)
    one = layers.Conv2D(2, 1, name="one")(x)
    one = layers.BatchNormalization()(one)
    one = layers.Reshape((-1, 2))(layers.Activation("sigmoid")(one))
    side = layers.Conv2D(2, 1, name="side")(x)
    both = layers.Concatenate(axis=1)([one, layers.Reshape((-1, 2))(side)])
    pooled = layers.Conv2D(2, 1, name="pooled")(x)
    two = layers.GlobalAveragePooling2D()(pooled)
    two = layers.Dense(3, name="two")(two)
    return keras.Model(inputs, {"map": both, "classes": layers.Softmax()(two)})


def test_each_layer_whose_result_is_an_output_is_an_end():
    assert set(end_names(two_heads())) == {"stem", "one", "side", "two"}


@pytest.mark.parametrize(
    ("tail", "ends"),
    [
        (layers.LeakyReLU(), True),
        (layers.UpSampling2D(interpolation="bilinear"), True),
        (layers.UnitNormalization(), True),
        (lambda x: 2 * x - 0.5, True),
        (layers.GlobalMaxPooling2D(), False),
        (lambda x: keras.ops.mean(x, axis=(1, 2)), False),
    ],
)
def test_what_may_follow_the_last_layer(tail, ends):
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="stem")(x)
    one, last = (layers.Conv2D(4, 1, name=name)(x) for name in ("one", "last"))
    model = keras.Model(inputs, {"one": tail(one), "two": last})
    assert ("one" in end_names(model)) == ends


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "digits_cnn"])
def test_a_classifier_has_two_ends(name):
    model = build_model(name, (32, 32, 3), 10, classifier_activation="softmax")
    assert end_names(model) == ["stem_conv", "head_dense"]


def test_all_heads_of_a_detector_keep_their_bits():
    model = build_model("ssd_resnet8", (32, 32, 3), 2)
    heads = {f"{kind}{level}" for kind in ("boxes", "scores") for level in range(4)}
    ends = {"stem_conv", *heads}
    assert set(end_names(model)) == ends
    policy = BitwidthPolicy.uniform(model, 4, 3)
    assert {n for n, b in policy.items() if b.weight_bits == 8} == ends
    candidates = SearchSpace((2, 4), (3, 4)).candidates(model)
    fixed = {name for name, pair in candidates.items() if pair == ((8,), (8,))}
    assert fixed == ends
    # A budget said as a uniform policy is what that policy costs.
    (limit,) = limits_of(model, candidates, "W4A3")
    assert limit.table.resource == BIT_OPS
    assert limit.budget == pytest.approx(count_cost(model, policy).bit_ops)
    drawn = BitwidthPolicy.random(model, budget="W4A3", weight_bits=(2, 4))
    assert {n for n, b in drawn.items() if b.weight_bits == 8} == ends
    assert count_cost(model, drawn).bit_ops <= limit.budget * (1 + 1e-9)


def test_what_is_pinned_overrules_the_ends():
    model = two_heads()
    bits = BitwidthPolicy.uniform(model, 4, 4, pinned={"one": (None, 5)})
    # As where nothing is said, the side that is left open has 8 bits in an end.
    assert (bits["one"].weight_bits, bits["one"].activation_bits) == (8, 5)
    assert bits["two"].weight_bits == bits["stem"].weight_bits == 4
    free = BitwidthPolicy.uniform(model, 4, 4, {})
    assert {b.weight_bits for b in free.values()} == {4}
    candidates = SearchSpace((2, 3), (2, 3), {"body": (4, None)}).candidates(model)
    assert candidates["body"] == ((4,), (2, 3))
    assert candidates["one"] == ((2, 3), (2, 3))
