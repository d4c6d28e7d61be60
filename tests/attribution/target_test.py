"""The l_p target, eq. 8 and the generalization risk, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.attribution import capacity_exponent, generalization_risk, resize_maps
from gmpq_tf.attribution.target import normalized, top_pixels


def random_maps(seed: int, shape=(3, 4, 5)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.maximum(rng.standard_normal(shape), 0).astype("float32")


def test_capacity_exponent_is_equation_8():
    bits = [(2.0, 3.0), (4.0, 4.0), (8.0, 8.0)]
    expected = np.mean([(4 / w) * (6 / a) for w, a in bits])
    got = capacity_exponent([(tf.constant(w), tf.constant(a)) for w, a in bits])
    assert float(got) == pytest.approx(expected, rel=1e-6)


def test_exponent_is_1_where_capacity_is_the_papers_product():
    assert float(capacity_exponent([(tf.constant(4.0), tf.constant(6.0))])) == 1.0


@pytest.mark.parametrize("p", [0.5, 1.0, 2.5])
def test_normalized(p):
    maps = random_maps(0) * 7
    powered = np.where(maps > 0, maps**p, 0)
    expected = powered / powered.sum((1, 2), keepdims=True)
    np.testing.assert_allclose(normalized(maps, p), expected, atol=1e-6)


def test_normalized_zero_map_stays_zero_with_finite_gradient():
    maps = tf.zeros([1, 3, 3])
    with tf.GradientTape() as tape:
        tape.watch(maps)
        value = tf.reduce_sum(normalized(maps, 0.5) ** 2)
    assert float(value) == 0
    assert np.isfinite(tape.gradient(value, maps)).all()


@pytest.mark.parametrize("k", [1, 7, 20, 1000])
def test_top_pixels(k):
    maps = np.random.default_rng(0).random((3, 4, 5)).astype("float32")
    mask = top_pixels(tf.constant(maps), k).numpy()
    for one, chosen in zip(maps, mask, strict=True):
        assert chosen.sum() == min(k, 20)
        assert chosen.min() == 1 or one[chosen == 1].min() >= one[chosen == 0].max()


def numpy_risk(student, teacher, p, k):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        if t.sum() == 0:
            continue
        target = t**p / (t**p).sum()
        s = s / s.sum() if s.sum() else s
        order = np.argsort(-t.ravel(), kind="stable")[:k]
        total += ((s - target).ravel()[order] ** 2).sum()
    return total / len(student)


@pytest.mark.parametrize("k", [5, 1000])
@pytest.mark.parametrize("p", [1.0, 2.2])
def test_generalization_risk(k, p):
    student, teacher = random_maps(1), random_maps(2)
    teacher[1] = 0  # an image without attribution counts nothing
    got = generalization_risk(student, teacher, tf.constant(p), k)
    assert float(got) == pytest.approx(numpy_risk(student, teacher, p, k), rel=1e-4)


def test_risk_is_zero_for_the_target_itself_at_any_scale():
    teacher = random_maps(3)
    risk = generalization_risk(5 * teacher**2, teacher, tf.constant(2.0))
    assert float(risk) == pytest.approx(0, abs=1e-10)


def test_only_the_student_gets_a_gradient():
    student, teacher, p = (
        tf.constant(v) for v in (random_maps(4), random_maps(5), 2.0)
    )
    with tf.GradientTape() as tape:
        tape.watch([student, teacher, p])
        risk = generalization_risk(student, teacher, p)
    gradients = tape.gradient(risk, [student, teacher, p])
    assert np.abs(gradients[0]).max() > 0
    assert gradients[1:] == [None, None]


@pytest.mark.parametrize("size", [(4, 5), (8, 10), (13, 7), (3, 2)])
def test_resize_maps_is_bilinear(size):
    maps = random_maps(6)
    expected = tf.image.resize(maps[..., None], size, antialias=False)[..., 0]
    np.testing.assert_allclose(
        resize_maps(tf.constant(maps), *size), expected, atol=1e-5
    )
