import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.quantizers.recompute import keeping_arguments


def product(x, w):
    return tf.linalg.matmul(tf.sin(x), tf.exp(w))


@pytest.fixture
def operands():
    random = np.random.default_rng(0)
    return [
        tf.constant(random.standard_normal(s), tf.float64) for s in ((4, 3), (3, 5))
    ]


def test_value_and_gradients_are_the_functions_own(operands):
    for function in (product, keeping_arguments(product)):
        with tf.GradientTape() as tape:
            tape.watch(operands)
            result = function(*operands)
        grads = tape.gradient(result, operands)
        x, w = (value.numpy() for value in operands)
        ones = np.ones((4, 5))
        np.testing.assert_allclose(result, np.sin(x) @ np.exp(w))
        np.testing.assert_allclose(grads[0], np.cos(x) * (ones @ np.exp(w).T))
        np.testing.assert_allclose(grads[1], np.exp(w) * (np.sin(x).T @ ones))


def test_second_derivatives_are_the_functions_own(operands):
    x, w = operands
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            result = keeping_arguments(product)(x, w)
        slope = inner.gradient(result, x)
    second = outer.gradient(slope, x)
    expected = -np.sin(x) * (np.ones((4, 5)) @ np.exp(w).T)
    np.testing.assert_allclose(second, expected)


def kept_by(function, operands):
    """Types of the forward operations whose results the backward pass takes."""

    @tf.function
    def step(*values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            result = function(*values)
        graph = tf.compat.v1.get_default_graph()
        forward = set(graph.get_operations())
        slopes = tape.gradient(result, values)
        backward = set(graph.get_operations()) - forward
        taken = {t.op for op in backward for t in op.inputs} & forward
        kept.update(op.type for op in taken)
        return slopes

    kept: set = set()
    step.get_concrete_function(*operands)
    return kept


def test_the_backward_pass_takes_nothing_but_the_arguments(operands):
    assert {"Sin", "Exp"} <= kept_by(product, operands)
    assert not {"Sin", "Exp"} & kept_by(keeping_arguments(product), operands)
