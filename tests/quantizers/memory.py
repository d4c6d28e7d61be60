"""What a backward pass keeps of the forward one."""

import tensorflow as tf


def kept_for_backward(function, inputs):
    """Bytes of the forward tensors that the backward operations read."""

    def step(*values):
        graph = tf.compat.v1.get_default_graph()
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = tf.reduce_sum(function(*values))
        forward = set(graph.get_operations())
        tape.gradient(loss, values, unconnected_gradients="zero")
        kept = {
            tensor.ref(): tensor
            for operation in set(graph.get_operations()) - forward
            for tensor in operation.inputs
            if tensor.op in forward
        }
        sizes.append(
            sum(t.dtype.size * (t.shape.num_elements() or 1) for t in kept.values())
        )

    sizes: list[int] = []
    tf.function(step, autograph=False).get_concrete_function(*inputs)
    return sizes[0]
