"""Trade a little time of the backward pass for memory."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf


def keeping_arguments(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """`function`, evaluated again for its gradient instead of keeping what it computed.

    Unlike `tf.recompute_grad` it adds no pass over the arguments to delay the second
    evaluation, and takes no variables. In graphs, what the gradient does not need of
    it, such as a convolution's output, is not computed twice.

    Args:
        function: of tensors alone, of any shapes, to one tensor.

    Returns:
        A function of the same tensors, differentiable any number of times.
    """

    @tf.custom_gradient
    def call(*arguments: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def backward(upstream: tf.Tensor) -> list[tf.Tensor]:
            # Not before the backward pass arrives, or it would be kept all the same.
            with tf.control_dependencies([upstream]):
                again = [tf.identity(argument) for argument in arguments]
            with tf.GradientTape() as tape:
                tape.watch(again)
                result = function(*again)
            return tape.gradient(result, again, upstream, unconnected_gradients="zero")

        return function(*arguments), backward

    return call
