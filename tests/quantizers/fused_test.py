import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.quantizers import fused


@pytest.fixture
def chunks(monkeypatch):
    monkeypatch.setattr(fused, "USE_XLA", True)
    monkeypatch.setattr(fused, "CHUNK", 64)


def terms(parameters, x, y):
    (scale,) = parameters
    return [x * y, scale * tf.square(x) * y]


def expected(scale, x, y, channels):
    x, y = (v.reshape(-1, channels).astype("float64") for v in (x, y))
    return [(x * y).sum(0), (scale * x**2 * y).sum(0)]


@pytest.mark.parametrize("channels", [1, 6, 100])
@pytest.mark.parametrize("rows", [1, 7, 64, 131])
def test_sums_are_those_of_numpy(chunks, rows, channels):
    random = np.random.default_rng(rows)
    x, y = random.normal(size=(2, rows, channels)).astype("float32")
    scale = random.normal(size=channels).astype("float32")

    def totals(s, x, y):
        rows = fused.chunk_rows(x, channels)
        return fused.sums(terms, [s], [x, y], channels, rows)

    found = fused.compiled(totals)(scale, x, y)
    for total, want in zip(found, expected(scale, x, y, channels), strict=True):
        np.testing.assert_allclose(total, want, rtol=1e-4, atol=1e-4)


def test_the_batch_size_may_be_unknown(chunks):
    x = np.random.default_rng(0).normal(size=(5, 3, 7)).astype("float32")
    function = tf.function(
        lambda x: fused.sums(
            lambda _, x: [x, x * x], [], [x], rows=fused.chunk_rows(x)
        ),
        input_signature=[tf.TensorSpec([None, 3, 7])],
        jit_compile=True,
    )
    np.testing.assert_allclose(
        np.ravel(function(x)), [x.sum(), (x**2).sum()], rtol=1e-4
    )


def test_gradient_of_sums_is_that_of_the_plain_sum(chunks):
    random = np.random.default_rng(0)
    values = [tf.constant(random.normal(size=s), "float32") for s in ((4,), (50, 4))]

    def slopes(total):
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = tf.reduce_sum(tf.square(total(*values)))
        return tape.gradient(loss, values)

    found = slopes(
        fused.compiled(
            lambda s, x: fused.sums(lambda p, x: [p[0] * x * x], [s], [x], 4, 16)[0]
        )
    )
    want = slopes(lambda s, x: tf.reduce_sum(s * x * x, 0))
    for slope, expected_slope in zip(found, want, strict=True):
        np.testing.assert_allclose(slope, expected_slope, rtol=1e-3, atol=1e-3)


def test_one_trace_serves_all_sizes_of_a_rank_and_type():
    traces = []

    def doubled(x):
        traces.append(x.dtype)
        return 2 * x

    function = fused.compiled(doubled, any_size=True)
    for shape, dtype in ((3, "float32"), (5, "float32"), ((2, 3), "float32")):
        x = np.random.default_rng(0).normal(size=shape).astype(dtype)
        np.testing.assert_array_equal(function(tf.constant(x)), x + x)
    function(tf.ones(3, tf.float16))
    assert len(traces) == 3
