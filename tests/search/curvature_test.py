"""Traces and scores against closed forms, and the published policies of HAWQ-V3."""

from itertools import pairwise, product

import keras
import numpy as np
import pytest
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.cost_tables import CostTable
from gmpq_tf.limits import Limit
from gmpq_tf.search.choose import choose
from gmpq_tf.search.curvature import curvatures, rademacher
from gmpq_tf.search.judge import Judge
from gmpq_tf.search.strategies.hawq import perturbation
from gmpq_tf.search.values import Bonds, total
from gmpq_tf.space import SearchSpace


def symmetric(size, seed=0):
    matrix = np.random.default_rng(seed).normal(size=(size, size))
    return (matrix + matrix.T).astype("float32")


def test_the_mean_over_all_signs_is_the_trace():
    matrix = symmetric(6)
    variables = [tf.Variable(tf.ones(4)), tf.Variable(tf.ones(2))]

    def risk():
        x = tf.concat(variables, 0)
        return tf.tensordot(x, tf.linalg.matvec(matrix, x), 1) / 2

    found = []
    for signs in product((-1.0, 1.0), repeat=6):
        vectors = [tf.constant(signs[:4]), tf.constant(signs[4:])]
        found.append([float(v) for v in curvatures(risk, variables, vectors)])
    found = np.array(found)
    blocks = [matrix[:4, :4], matrix[4:, 4:]]
    np.testing.assert_allclose(found.mean(axis=0), [np.trace(b) for b in blocks], 1e-5)
    # Variance: 2 (||A||_F^2 - sum a_ii^2) of a block, and of what lies beside it once.
    beside = np.square(matrix[:4, 4:]).sum()
    wanted = [
        2 * (np.square(b).sum() - np.square(np.diag(b)).sum()) + beside for b in blocks
    ]
    np.testing.assert_allclose(found.var(axis=0), wanted, 1e-4)


def test_drawn_signs_are_even_and_repeat():
    drawn = np.asarray(rademacher([50, 40], [3, 4]))
    assert set(np.unique(drawn)) == {-1.0, 1.0} and abs(drawn.mean()) < 0.1
    np.testing.assert_array_equal(drawn, rademacher([50, 40], [3, 4]))
    assert (drawn != np.asarray(rademacher([50, 40], [3, 5]))).any()


def heads(kind):
    """A model of one output of a kind, and what it reads."""
    inputs = keras.Input((3, 3))
    x = keras.layers.Dense(4)(inputs)
    if kind == "binary":
        x = keras.layers.Dense(1, activation="sigmoid")(keras.layers.Flatten()(x))
    elif kind == "softmax":
        x = keras.layers.Activation("softmax")(x)
    elif kind == "numbers":
        x = keras.layers.Dense(1)(keras.layers.Flatten()(x))
    return keras.Model(inputs, x)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("kind", ["places", "softmax", "binary", "numbers"])
def test_drawn_gradients_make_the_hessian_of_the_divergence(kind):
    keras.utils.set_random_seed(1)
    model = heads(kind)
    images = np.random.default_rng(0).normal(size=(2, 3, 3)).astype("float32")
    teacher = [np.asarray(model(images))]
    labels = np.zeros(2) if kind == "binary" else None
    judge = Judge(model, teacher, labels)
    scores = tf.constant(teacher[0])
    # Probabilities of classes move as their logits do: they go on adding up to one.
    link = tf.nn.softmax if kind == "softmax" else tf.identity
    scores = tf.math.log(scores) if kind == "softmax" else scores
    with tf.GradientTape() as outer:
        outer.watch(scores)
        with tf.GradientTape() as inner:
            inner.watch(scores)
            risk = tf.reduce_sum(judge.divergence([link(scores)], teacher))
        gradient = inner.gradient(risk, scores)
    size = teacher[0].size
    hessian = np.asarray(outer.jacobian(gradient, scores)).reshape(size, size)

    @tf.function
    def drawn(seed):
        with tf.GradientTape() as tape:
            tape.watch(scores)
            risk = tf.reduce_sum(judge.drawn([link(scores)], teacher, seed))
        return tape.gradient(risk, scores)

    draws = 1500
    found = tf.map_fn(
        drawn,
        tf.stack([tf.range(draws), tf.range(draws)], 1),
        fn_output_signature=tf.float32,
    )
    found = np.asarray(found).reshape(draws, size)
    products = found[:, :, None] * found[:, None, :]
    error = products.std(axis=0) / np.sqrt(draws)
    gap = np.abs(products.mean(axis=0) - hessian)
    assert (gap < 5 * error + 1e-5).all()
    assert np.abs(hessian).max() > 10 * error.max()


# HAWQ-V3's ResNet18: traces per weight, squared errors at 8 and at 4 bits, weights,
# millions of multiply-adds, milliseconds on a T4 at 4 and at 8 bits; of the layers but
# the first and last, four of the first stage, then five of each (the third reads what
# the first does). From the notebook of the official code.
TRACES = """.06857826 .03162379 .03298575 .01205663 .02222431 .00596336 .06931772
.00807129 .00372905 .00530698 .00209011 .00737569 .00210454 .00151197 .00158041
.00078146 .00451841 .00098745 .00072944"""
AT_8 = """.0235 .0125 .0102 .0082 .0145 .0344 .0023 .0287 .0148 .0333 .0682 .0027 .0448
.0336 .0576 .1130 .0102 .0947 .0532"""
AT_4 = """6.7430 3.9691 3.3281 2.6796 4.7277 10.5966 .6827 9.0942 4.8857 10.7599 21.7546
.8603 14.5324 10.9651 18.7706 36.4044 3.1572 29.6994 17.4016"""
WEIGHTS = """36864 36864 36864 36864 73728 147456 8192 147456 147456 294912 589824 32768
589824 589824 1179648 2359296 131072 2359296 2359296"""
MACS = """115.605504 115.605504 115.605504 115.605504 57.802752 115.605504 6.422528
115.605504 115.605504 57.802752 115.605504 6.422528 115.605504 115.605504 57.802752
115.605504 6.422528 115.605504 115.605504"""
MS_4 = """.210944 .210927 .211041 .210869 .136425 .191675 .025322 .191482 .191429
.113953 .20556 .019175 .205669 .205665 .131851 .222878 .017901 .223046 .222861"""
MS_8 = """.361891 .362117 .311419 .304545 .191849 .389489 .033417 .389049 .389286
.191347 .343074 .028024 .343133 .343108 .211171 .373766 .028968 .373982 .374052"""
TIED = ((4, 6), (9, 11), (14, 16))
BOPS_QUARTER, BOPS_MORE = "1110101000000000000", "1111111101111010110"
PUBLISHED = {
    ("size", 0.25): "1111111111111100000",
    ("size", 0.5): "1111111111111110100",
    ("size", 0.75): "1111111111111011110",
    ("bops", 0.25): BOPS_QUARTER,
    ("bops", 0.5): "1110111101110000000",
    ("bops", 0.75): BOPS_MORE,
    ("latency", 0.25): BOPS_QUARTER,
    ("latency", 0.5): "1111101101110010100",
    ("latency", 0.75): BOPS_MORE,
}


def numbers(text):
    return np.array(text.split(), "float64")


def costs_of(resource):
    """Cost of each layer at 4 and at 8 bits."""
    if resource == "size":
        return numbers(WEIGHTS) / 2, numbers(WEIGHTS)
    if resource == "bops":
        return numbers(MACS), 4 * numbers(MACS)
    return numbers(MS_4), numbers(MS_8)


@pytest.mark.parametrize(("resource", "share"), PUBLISHED)
def test_published_policies_of_hawq_v3(resource, share):
    layers = [f"layer_{i:02}" for i in range(19)]
    errors = zip(layers, numbers(TRACES), numbers(AT_4), numbers(AT_8), strict=True)
    values = {
        name: (perturbation(trace, {4: at_4, 8: at_8}), {4: 0.0, 8: 0.0})
        for name, trace, at_4, at_8 in errors
    }
    low, high = costs_of(resource)
    tables = {}
    for name, at_4, at_8 in zip(layers, low, high, strict=True):
        tables[name] = np.zeros((7, 7))
        tables[name][2, 2], tables[name][6, 6] = at_4, at_8
    budget = low.sum() + share * (high.sum() - low.sum())
    limit = Limit(CostTable(resource, "bytes", tables), budget)
    # Two convolutions that read one tensor take the same bits, as a layer's two do.
    apart = {
        ((layers[i], 0, b), (layers[j], 0, 12 - b)): -100.0
        for i, j in TIED
        for b in (4, 8)
    }
    bonds = Bonds(dict.fromkeys(layers, ((4, 4), (8, 8))), apart)
    candidates = dict.fromkeys(layers, ((4, 8), (4, 8)))
    bits = choose(values, candidates, [limit], bonds)
    found = "".join(str(int(bits[name] == (8, 8))) for name in layers)
    assert found == PUBLISHED[resource, share]
    if (resource, share) == ("size", 0.25):  # its value, as the document gives it
        added = 2 * (total(values, bits) - sum(v[0][4] for v in values.values()))
        assert added == pytest.approx(1.1894, abs=1e-4)


@pytest.fixture(scope="module")
def linear():
    """A layer of one number, compared by its squared error, and images."""
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(1, name="only")(inputs))
    rng = np.random.default_rng(2)
    model.get_layer("only").set_weights([rng.normal(size=(6, 1)), rng.normal(size=1)])
    return model, rng.uniform(0, 1, (400, 6)).astype("float32")


def test_a_linear_layer_has_its_error_exactly(linear):
    """`fisher` is half the second derivative, which here is all there is."""
    model, images = linear
    options = {"space": SearchSpace(pinned={}), "images": 400, "progress": "none"}
    found = gmpq.search_policy(model, images, "fisher", **options).valued
    measured = gmpq.search_policy(model, images, "loss_delta", **options)
    for side, widths in enumerate(found.values["only"]):
        for bits in widths:
            samples = found.samples["only"][side][bits]
            error = samples.std() / np.sqrt(len(samples))
            wanted = measured.values["only"][side][bits]
            assert abs(samples.mean() - wanted) < 4 * error + 0.02 * abs(wanted)


def test_traces_of_a_linear_layer_are_closed(linear):
    """`tr(H) = 2 mean ||x||^2 / variance of the output`."""
    model, images = linear
    result = gmpq.search_policy(
        model,
        images,
        "hawq",
        space=SearchSpace(pinned={}),
        probes=30,
        trace_images=400,
        progress="none",
    )
    outputs = np.asarray(model(images))
    closed = 2 * np.square(images).sum(axis=1).mean() / outputs.var()
    record = result.history[0]
    assert abs(record["trace"] - closed) < 4 * record["standard_error"] + 1e-6
    values = result.valued.columns["weights"]["only"][0]
    kernel = model.get_layer("only").kernel.numpy()
    ratios = [values[b] / values[c] for b, c in pairwise(sorted(values))]
    assert all(ratio > 1 for ratio in ratios)
    # The value is half the mean curvature times the error of the project's rounding.
    student = gmpq.quantize_model(model, result.policy)
    layer = student.get_layer("only")
    bits = result.policy.layers["only"].weight_bits
    error = np.square(np.asarray(layer.quantize_kernel(layer.kernel)) - kernel).sum()
    wanted = -0.5 * abs(record["trace"]) / kernel.size * error
    assert values[bits] == pytest.approx(wanted, rel=1e-3)
