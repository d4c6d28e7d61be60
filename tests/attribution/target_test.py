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


def test_top_pixels_take_no_more_memory_than_the_maps():
    maps = tf.TensorSpec([8, 224, 224])
    traced = tf.function(lambda x: top_pixels(x, 1000)).get_concrete_function(maps)
    sizes = [
        output.shape.num_elements() or 0
        for operation in traced.graph.get_operations()
        for output in operation.outputs
        if output.shape.rank is not None
    ]
    assert max(sizes) == 8 * 224 * 224


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


def risk_and_gradient(student, teacher, p=1.0, k=1000):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        risk = generalization_risk(student, teacher, tf.constant(p), k)
    return float(risk), tape.gradient(risk, student).numpy()


@pytest.mark.parametrize("k", [5, 1000])
def test_student_without_attribution_counts_its_target_without_a_gradient(k):
    teacher = random_maps(7)
    target = teacher / teacher.sum((1, 2), keepdims=True)
    top = -np.sort(-target.reshape(3, -1))[:, :k]
    risk, gradient = risk_and_gradient(np.zeros_like(teacher), teacher, k=k)
    assert risk == pytest.approx(np.square(top).sum(1).mean(), rel=1e-5)
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("student", [random_maps(1), np.zeros((3, 4, 5), "float32")])
def test_teacher_without_attribution_counts_nothing(student):
    risk, gradient = risk_and_gradient(student, np.zeros_like(student))
    assert risk == 0
    np.testing.assert_array_equal(gradient, 0.0)


def test_constant_maps_agree():
    ones = np.ones((2, 4, 5), "float32")
    risk, gradient = risk_and_gradient(3 * ones, ones)
    assert risk == 0
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("scale", [1e-28, 1e-13, 1e-5, 1e5, 1e19, 1e30])
def test_risk_does_not_depend_on_the_scale_of_the_maps(scale):
    """No square of a map is taken; the gradient is that of the map times its scale."""
    student, teacher = random_maps(8), random_maps(9)
    scale = np.float32(scale)
    plain, slope = risk_and_gradient(student, teacher, 2.2, 7)
    risk, scaled_slope = risk_and_gradient(scale * student, scale * teacher, 2.2, 7)
    assert risk == pytest.approx(plain, rel=1e-4)
    assert risk == pytest.approx(numpy_risk(student, teacher, 2.2, 7), rel=1e-4)
    scaled_slope = scaled_slope.astype("float64") * scale
    np.testing.assert_allclose(scaled_slope, slope, atol=1e-4 * np.abs(slope).max())


def test_the_brightest_maps_have_a_risk_still():
    """At 1e38 the gradient is below what float32 holds, so zero."""
    student, teacher = (np.float32(1e38) * random_maps(s) for s in (8, 9))
    risk, gradient = risk_and_gradient(student, teacher, 2.2, 7)
    expected = numpy_risk(*(m.astype("float64") for m in (student, teacher)), 2.2, 7)
    assert risk == pytest.approx(expected, rel=1e-4)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("scale", [1e-32, 1e-38])
def test_maps_below_1e_30_count_as_zero(scale):
    student, teacher = random_maps(8), random_maps(9)
    risk, gradient = risk_and_gradient(np.float32(scale) * student, teacher)
    assert risk == pytest.approx(risk_and_gradient(0 * student, teacher)[0], rel=1e-6)
    np.testing.assert_array_equal(gradient, 0.0)
    assert risk_and_gradient(student, np.float32(scale) * teacher)[0] == 0


@pytest.mark.parametrize("p", [1e-3, 50.0])
def test_extreme_exponents(p):
    """Small: equal on all pixels that count; large: all on the highest pixel."""
    student, teacher = random_maps(10), random_maps(11) * 5
    scaled = teacher.astype("float64") / teacher.max((1, 2), keepdims=True)
    powered = np.where(scaled > 0, scaled**p, 0)
    expected = powered / powered.sum((1, 2), keepdims=True)
    np.testing.assert_allclose(normalized(teacher, p), expected, rtol=1e-4, atol=1e-7)
    assert all(np.isfinite(v).all() for v in risk_and_gradient(student, teacher, p))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("background", [0.0, 1.0])
def test_maps_that_are_not_finite_make_the_risk_nan(value, which, background):
    maps = [background * random_maps(s) for s in (1, 2)]
    maps[which][1, 2, 3] = value
    maps[1 - which] += 1
    assert np.isnan(float(generalization_risk(*maps, tf.constant(2.0), 20)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_floats_are_computed_in_float32(dtype):
    student, teacher = (tf.cast(random_maps(s), dtype) for s in (1, 2))
    wide = [tf.cast(m, "float32").numpy() for m in (student, teacher)]
    risk = generalization_risk(student, teacher, tf.constant(2.2), 5)
    assert risk.dtype == "float32"
    assert float(risk) == pytest.approx(numpy_risk(*wide, 2.2, 5), rel=1e-3)


def test_batch_without_images_has_no_risk():
    empty = np.zeros((0, 4, 5), "float32")
    assert risk_and_gradient(empty, empty)[0] == 0
