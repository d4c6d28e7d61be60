"""Where a classifier is split."""

import keras
import pytest

from gmpq_tf.attribution import split_head
from gmpq_tf.graph import GraphError

layers = keras.layers


def branched() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    stem = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    left = layers.Conv2D(4, 3, name="left")(stem)
    right = layers.Conv2D(4, 3, name="right")(stem)
    pooled = [layers.GlobalAveragePooling2D()(t) for t in (left, right)]
    return keras.Model(inputs, layers.Dense(2)(layers.Concatenate()(pooled)))


def test_takes_the_last_map_on_every_path():
    backbone, _ = split_head(branched())
    assert backbone.output.shape == (None, 8, 8, 4)  # stem; left and right are bypassed


def test_ignores_one_pixel_maps():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="last")(inputs)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Conv2D(5, 1)(x)
    backbone, head = split_head(keras.Model(inputs, layers.Flatten()(x)))
    assert backbone.output.shape == (None, 6, 6, 4)
    assert [o.shape for o in head.outputs] == [(None, 5), (None, 5)]


def test_named_layer_is_used_and_must_cut():
    model = branched()
    assert split_head(model, "stem")[0].output.shape == (None, 8, 8, 4)
    with pytest.raises(GraphError, match="every path"):
        split_head(model, "left")
    with pytest.raises(GraphError, match="Did you mean 'stem'"):
        split_head(model, "stemm")


def test_no_feature_map_is_an_error_that_names_the_way_out():
    inputs = keras.Input((9,))
    with pytest.raises(GraphError, match="eta=0"):
        split_head(keras.Model(inputs, layers.Dense(3)(inputs)))


def test_map_inside_a_separable_convolution_is_not_one():
    inputs = keras.Input((8, 8, 3))
    x = layers.SeparableConv2D(4, 3, depth_multiplier=2, name="last")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    backbone, _ = split_head(model)
    assert backbone.output is model.get_layer("last").output
    with pytest.raises(GraphError, match="feature_layer='last_depthwise'"):
        split_head(model, "last_depthwise")


def test_lines_are_taken_where_there_are_no_images():
    inputs = keras.Input((12, 3))
    x = layers.Conv1D(4, 3, name="line")(inputs)
    x = layers.GlobalAveragePooling1D()(layers.MaxPooling1D(2)(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert split_head(model)[0].output.shape == (None, 5, 4)
    assert split_head(model, "line")[0].output.shape == (None, 10, 4)
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Reshape((64, 3))(x)
    x = layers.Reshape((8, 8, 4))(layers.Conv1D(4, 1)(x))
    x = layers.Conv1D(4, 3)(layers.Reshape((64, 4))(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    assert split_head(model)[0].output.shape == (None, 8, 8, 4)


def test_not_a_classifier():
    inputs = keras.Input((8, 8, 3))
    with pytest.raises(GraphError, match="classifier"):
        split_head(keras.Model(inputs, layers.Conv2D(3, 3)(inputs)))
