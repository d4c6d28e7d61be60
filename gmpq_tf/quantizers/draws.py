"""Random numbers of a layer; a saved counter lets a resumed run continue the series."""

from __future__ import annotations

import random
from typing import Any

import keras
import tensorflow as tf

PLACES = 64  # independent draws for one count
LARGEST = 2**24  # float32 represents all whole numbers up to here


def add_draws(
    layer: keras.layers.Layer, dtype: str = "float32", seeds: int = LARGEST
) -> keras.Variable:
    """Gives a layer a variable [2]: its seed, and how often it has drawn.

    The seed depends on `keras.utils.set_random_seed`.

    Args:
        layer: the layer, which is being built.
        dtype: type of the variable.
        seeds: number of seeds; the type must represent each.
    """
    seed = random.randrange(seeds)
    found: Any = layer.add_weight(
        name="draws",
        shape=(2,),
        initializer=lambda shape, dtype=None: tf.constant([seed, 0], dtype),
        trainable=False,
        autocast=False,
        dtype=dtype,
    )
    return found


def next_seed(draws: keras.Variable) -> tf.Tensor:
    """Seed of the next draw, float32 [2]; increases the count by one.

    A float, since `keeping_arguments` asks for the gradient of every argument.
    """
    seed = tf.convert_to_tensor(draws)
    counted = tf.math.floormod(seed[1] + 1, LARGEST)
    with tf.control_dependencies([seed]):
        draws.assign(tf.stack([seed[0], counted]))
    return seed


def uniform(shape: Any, seed: tf.Tensor, place: int = 0) -> tf.Tensor:
    """Uniform draws from [0, 1) of a shape, fixed by the seed [2] and the place.

    Args:
        shape: of the result.
        seed: [2], as `next_seed` returns it.
        place: number of the draw among those of one seed, 0 to 63.
    """
    whole = tf.cast(tf.stop_gradient(seed), tf.int32) * [1, PLACES] + [0, place]
    return tf.random.stateless_uniform(shape, whole)
