"""Recomputes in the backward pass what would cost memory to keep."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def keeping_arguments(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Keeps only the arguments of `function`; the backward pass evaluates it again.

    Unlike `tf.recompute_grad` this makes no copy of the arguments to delay the second
    evaluation, and supports no variables. In graphs, what the gradient does not need,
    such as the output of a convolution, is not computed twice.

    Args:
        function: takes tensors only, of any shapes, and returns one tensor.

    Returns:
        A function of the same tensors, differentiable any number of times.
    """

    @tf.custom_gradient
    def call(*arguments: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def backward(upstream: tf.Tensor) -> list[tf.Tensor]:
            # Wait for the upstream gradient: computed earlier, in the forward pass, the
            # results would be kept all the same.
            with tf.control_dependencies([upstream]):
                again = tf.identity_n(arguments)
            with tf.GradientTape() as tape:
                tape.watch(again)
                result = function(*again)
            return tape.gradient(result, again, upstream, unconnected_gradients="zero")

        return function(*arguments), backward

    return call
