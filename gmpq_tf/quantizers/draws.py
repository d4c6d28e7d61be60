"""Random numbers of a layer, counted by a variable, so that a resumed run draws on."""

from __future__ import annotations

import random
from typing import Any

import keras
import tensorflow as tf

PLACES = 64  # that draw by the same count
LARGEST = 2**24  # whole numbers up to which float32 has all


def add_draws(layer: keras.layers.Layer) -> keras.Variable:
    """A seed, of `keras.utils.set_random_seed`, and how often was drawn; [2]."""
    seed = random.randrange(LARGEST)
    found: Any = layer.add_weight(
        name="draws",
        shape=(2,),
        initializer=lambda shape, dtype=None: tf.constant([seed, 0], dtype),
        trainable=False,
        autocast=False,
        dtype="float32",
    )
    return found


def next_seed(draws: keras.Variable) -> tf.Tensor:
    """What the next draw is made from, [2], in float32; counted.

    A float, so that gradients of what is computed with it may be asked for.
    """
    seed = tf.convert_to_tensor(draws)
    counted = tf.math.floormod(seed[1] + 1, LARGEST)
    with tf.control_dependencies([seed]):
        draws.assign(tf.stack([seed[0], counted]))
    return seed


def uniform(shape: Any, seed: tf.Tensor, place: int = 0) -> tf.Tensor:
    """Draws within 0 and 1 of a shape, the same for one seed [2] and place below 64."""
    whole = tf.cast(tf.stop_gradient(seed), tf.int32) * [1, PLACES] + [0, place]
    return tf.random.stateless_uniform(shape, whole)
