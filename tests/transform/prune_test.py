"""Smaller models against the whole one with the same channels set to zero."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from gmpq_tf.cost import count_cost
from gmpq_tf.graph import GraphError, read_graph
from gmpq_tf.models import build_model
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.transform import prune_channels, quantize_model
from gmpq_tf.transform.channels import channels_of


def randomized(model, seed=0):
    """Every weight drawn, statistics among them."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        layer.set_weights(
            [rng.uniform(0.2, 1.0, w.shape) * rng.choice([-1, 1, 1], w.shape)
             if "variance" not in v.name else rng.uniform(0.5, 2.0, w.shape)
             for v, w in zip(layer.weights, layer.get_weights(), strict=True)]
        )  # fmt: skip
    return model


def silenced(model, channels):
    """A copy with weights of some output channels set to 0: (layer, channels) each."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for name, gone in channels.items():
        layer = copy.get_layer(name)
        values = layer.get_weights()
        for value in values:
            if "Depthwise" in type(layer).__name__:
                if value.ndim > 1:  # its bias is of other channels
                    value[..., gone, :] = 0
            elif "Transpose" in type(layer).__name__ and value.ndim > 1:
                value[..., gone, :] = 0
            else:
                value[..., gone] = 0
        layer.set_weights(values)
    return copy


def mask(count, gone):
    return [i not in gone for i in range(count)]


def same(small, whole, shape, rtol=1e-4):
    images = np.random.default_rng(5).normal(size=(3, *shape)).astype("float32")
    found, wanted = (keras.tree.flatten(m(images)) for m in (small, whole))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(np.abs(b).max()))


def inverted():
    """A convolution, a depthwise one of two multiples, and one that reads it."""
    inputs = keras.Input((8, 8, 3))
    x = kl.Conv2D(6, 3, padding="same", name="conv")(inputs)
    x = kl.BatchNormalization(name="norm")(x)
    x = kl.ReLU(6.0, name="relu")(x)
    x = kl.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = kl.BatchNormalization(name="norm2")(x)
    x = kl.PReLU(shared_axes=[1, 2], name="prelu")(x)
    x = kl.ZeroPadding2D(1)(x)
    x = kl.MaxPooling2D()(x)
    x = kl.Conv2D(5, 3, activation="relu", name="last")(x)
    x = kl.GlobalAveragePooling2D()(x)
    x = kl.Dropout(0.5)(x)
    return keras.Model(inputs, kl.Dense(4, activation="softmax", name="head")(x))


def test_a_depthwise_convolution_follows():
    model = randomized(inverted())
    keep = {"conv": mask(6, [1, 4]), "last": mask(5, [0])}
    small = prune_channels(model, keep)
    both = [2, 3, 8, 9]  # of the depthwise one: two of each that it reads
    whole = silenced(
        model,
        {"conv": [1, 4], "norm": [1, 4], "depthwise": [1, 4], "norm2": both}
        | {"last": [0]},
    )
    bias = whole.get_layer("depthwise").get_weights()
    bias[1][both] = 0
    whole.get_layer("depthwise").set_weights(bias)
    same(small, whole, (8, 8, 3))
    assert small.get_layer("conv").kernel.shape == (3, 3, 3, 4)
    assert small.get_layer("depthwise").kernel.shape == (3, 3, 4, 2)
    assert small.get_layer("last").kernel.shape == (3, 3, 8, 4)
    assert small.get_layer("head").kernel.shape == (4, 4)
    by_hand = 64 * 27 * 4 + 36 * 9 * 8 + 4 * 72 * 4 + 16
    cost = count_cost(small)
    assert cost.macs == by_hand
    assert cost.params == 27 * 4 + 4 + 16 + 72 + 8 + 32 + 8 + 288 + 4 + 16 + 4
    assert count_cost(model).macs == 64 * 27 * 6 + 36 * 9 * 12 + 4 * 108 * 5 + 20
    # What it reads does not make channels of its own, and outputs stay.
    with pytest.raises(GraphError, match="name the layer before it"):
        prune_channels(model, {"depthwise": mask(12, [0, 1])})
    with pytest.raises(GraphError, match="in 'head' mixes channels"):
        prune_channels(model, {"head": mask(4, [1])})


def residual():
    inputs = keras.Input((6, 6, 2))
    x = kl.Conv2D(4, 1, name="stem", use_bias=False)(inputs)
    y = kl.Conv2D(3, 3, padding="same", activation="relu", name="inner")(x)
    y = kl.Conv2D(4, 3, padding="same", name="outer")(y)
    x = kl.Activation("relu")(kl.Add(name="add")([x, y]))
    z = kl.Conv2D(4, 1, name="third")(x)
    x = kl.Add(name="add2")([x, z])
    return keras.Model(inputs, kl.Dense(3, name="head")(kl.GlobalMaxPooling2D()(x)))


def test_what_is_added_stays_equal():
    model = randomized(residual())
    gone = {name: [2] for name in ("stem", "outer", "third")}
    whole = silenced(model, gone | {"inner": [0, 1]})
    keep = {"outer": mask(4, [2]), "inner": mask(3, [0, 1])}
    small = prune_channels(model, keep)
    same(small, whole, (6, 6, 2))
    for name in gone:
        assert small.get_layer(name).filters == 3
    again = prune_channels(model, keep | {"stem": mask(4, [2])})
    assert again.count_params() == small.count_params()
    with pytest.raises(GraphError, match=r"keep\['outer'\] and keep\['stem'\]"):
        prune_channels(model, keep | {"stem": mask(4, [1])})


def joined():
    """Side by side, flattened, squeezed and excited, and read by hidden units."""
    inputs = keras.Input((5, 5, 2))
    a = kl.Conv2D(3, 3, padding="same", activation="relu", name="a")(inputs)
    b = kl.Conv2D(2, 1, activation="relu", name="b")(inputs)
    x = kl.Concatenate(name="join")([a, b])
    gate = kl.GlobalAveragePooling2D(keepdims=True)(x)
    gate = kl.Conv2D(2, 1, activation="relu", name="squeeze")(gate)
    gate = kl.Conv2D(5, 1, activation="sigmoid", name="excite")(gate)
    x = kl.Multiply(name="gated")([x, gate])
    x = kl.Reshape((25, 5), name="line")(x)
    x = kl.Conv1D(4, 3, activation="relu", name="lines")(x)
    x = kl.Flatten(name="flat")(x)
    x = kl.Dense(6, activation="relu", name="hidden")(x)
    return keras.Model(inputs, kl.Dense(3, name="head")(x))


def test_side_by_side_flattened_and_excited():
    model = randomized(joined())
    keep = {"a": mask(3, [1]), "b": mask(2, [0]), "lines": mask(4, [3])}
    keep |= {"hidden": mask(6, [0, 5]), "squeeze": mask(2, [1])}
    small = prune_channels(model, keep)
    gone = {"a": [1], "b": [0], "lines": [3], "hidden": [0, 5], "squeeze": [1]}
    same(small, silenced(model, gone), (5, 5, 2))
    assert small.get_layer("excite").filters == 3
    assert small.get_layer("line").target_shape == (25, 3)
    assert small.get_layer("hidden").kernel.shape == (23 * 3, 4)
    policy = BitwidthPolicy.uniform(small, 4, 4)
    assert quantize_model(small, policy).count_params() > 0
    with pytest.raises(GraphError, match=r"keep\['a'\] and keep\['excite'\]"):
        prune_channels(model, {"a": mask(3, [1]), "excite": mask(5, [0])})


def test_shared_separable_nested_and_several_outputs():
    inputs = keras.Input((6, 6, 2))
    first = kl.Conv2D(4, 1, name="first")
    second = kl.Conv2D(4, 1, name="second")
    shared = kl.Conv2D(3, 3, padding="same", activation="relu", name="shared")
    one, other = shared(first(inputs)), shared(second(inputs))
    inner = keras.Input((6, 6, 3))
    nested = keras.Model(
        inner, kl.SeparableConv2D(4, 3, name="separable")(inner), name="nested"
    )
    up = kl.Conv2DTranspose(2, 2, strides=2, activation="relu", name="up")(nested(one))
    outputs = {
        "far": kl.Conv2D(2, 1, name="far")(up),
        "near": kl.Dense(2, name="near")(kl.GlobalAveragePooling2D()(other)),
    }
    model = randomized(keras.Model(inputs, outputs))
    keep = {"shared": mask(3, [0]), "first": mask(4, [3]), "up": mask(2, [1])}
    keep["separable_pointwise"] = mask(4, [0, 2])
    small = prune_channels(model, keep)
    assert small.get_layer("second").filters == 3
    assert small.get_layer("separable_depthwise").kernel.shape == (3, 3, 2, 1)
    assert small.output_names == model.output_names
    flat = prune_channels(model, {})
    assert flat.count_params() == model.count_params()
    same(flat, model, (6, 6, 2))
    gone = {"shared": [0], "first": [3], "second": [3], "up": [1]}
    same(small, silenced(flat, gone | {"separable_pointwise": [0, 2]}), (6, 6, 2))
    for name in ("far", "near"):
        with pytest.raises(GraphError, match="output"):
            prune_channels(model, {name: mask(2, [0])})


def test_what_is_not_followed_is_refused_by_name():
    inputs = keras.Input((6, 6, 4))
    x = kl.Conv2D(4, 1, name="before")(inputs)
    x = kl.Conv2D(4, 3, groups=2, name="grouped")(x)
    x = kl.Conv2D(4, 1, name="shuffled")(x)
    x = kl.Permute((3, 1, 2), name="turned")(x)
    x = kl.Conv2D(4, 1, activation="softmax", name="mixing")(x)
    x = kl.Conv2D(4, 1, name="normed")(x)
    x = kl.LayerNormalization(name="layernorm")(x)
    x = kl.Conv2D(4, 1, name="own")(x)
    x = kl.Lambda(lambda t: t, name="lambda", output_shape=(4, 4, 4))(x)
    x = kl.Conv2D(3, 1, name="free")(x)
    model = keras.Model(inputs, kl.Dense(2, name="head")(kl.Flatten()(x)))
    for name, said in (
        ("before", "in 2 groups"),
        ("grouped", "in 2 groups"),
        ("shuffled", "'turned'"),
        ("mixing", "mixes channels"),
        ("normed", "'layernorm'"),
        ("own", "'lambda'"),
    ):
        with pytest.raises(GraphError, match=said):
            prune_channels(model, {name: mask(4, [0])})
    assert prune_channels(model, {"free": mask(3, [0])}).count_params() > 0
    with pytest.raises(GraphError, match="none of the 3 of 'free'"):
        prune_channels(model, {"free": [False] * 3})
    for wrong in ([True, False], [0, 2], [1.0, 0.0, 1.0]):
        with pytest.raises(GraphError, match="boolean for each of the 3"):
            prune_channels(model, {"free": wrong})
    with pytest.raises(GraphError, match="Did you mean 'free'"):
        prune_channels(model, {"fre": [True] * 3})
    student = quantize_model(model, BitwidthPolicy.uniform(model, 4, 4))
    with pytest.raises(GraphError, match="which is quantized"):
        prune_channels(student, {})


def test_a_mean_over_channels_is_not_taken_for_one_of_tensors():
    inputs = keras.Input((5, 4, 2))
    x = kl.Conv2D(4, 1, name="conv")(inputs)
    x = keras.ops.average(x, axis=-1)  # its last axis, of width 4, is no channel
    model = keras.Model(inputs, kl.Dense(3, name="head")(x))
    with pytest.raises(GraphError, match="average"):
        prune_channels(model, {"conv": mask(4, [0])})


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("name", "groups"), [("resnet8", 3), ("mobilenet_v2", 5), ("vgg16", 0)]
)
def test_networks_lose_every_other_channel(name, groups):
    """Residual groups lose the same."""
    model = build_model(name, (32, 32, 3), 10)
    found = channels_of(read_graph(model))
    free = {n: own for n, own in found.producers.items() if found.why_fixed(n) is None}
    assert [n for n in found.producers if n not in free] == [list(found.producers)[-1]]
    sets = [own.tobytes() for own in free.values()]
    assert sum(sets.count(each) > 1 for each in set(sets)) == groups
    keep = {n: [i % 2 == 0 for i in range(own.size)] for n, own in free.items()}
    small = prune_channels(model, keep)
    for layer in free:
        assert (
            2 * small.get_layer(layer).kernel.shape[-1]
            == (model.get_layer(layer).kernel.shape[-1])
        )
    assert count_cost(small).macs < 0.3 * count_cost(model).macs
    assert small.output_shape == model.output_shape
