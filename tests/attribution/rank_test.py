"""Attribution rank distance against SciPy's ranks."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import rankdata

from gmpq_tf.attribution import AttributionRankDistance, rank_distance


def scipy_distance(student: np.ndarray, teacher: np.ndarray, k: int) -> np.ndarray:
    out = []
    for s, t in zip(student, teacher, strict=True):
        rs, rt = (rankdata(-m.ravel(), method="ordinal") for m in (s, t))
        top = rt <= k
        out.append(np.abs(rs - rt)[top].mean())
    return np.array(out)


@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("ties", [False, True])
def test_against_scipy(k, ties):
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((2, 4, 9, 8)).astype("float32")
    if ties:
        maps = np.maximum(np.round(maps), 0)
    student, teacher = maps
    expected = scipy_distance(student, teacher, k)
    np.testing.assert_allclose(rank_distance(student, teacher, k), expected, rtol=1e-6)


def test_metric_is_the_mean_over_images_and_keeps_rank_invariance():
    rng = np.random.default_rng(1)
    teacher = rng.random((6, 5, 5)).astype("float32")
    student = rng.random((6, 5, 5)).astype("float32")
    metric = AttributionRankDistance(top_k=7)
    metric.update_state(tf.constant(teacher[:4]), tf.constant(student[:4]))
    metric.update_state(tf.constant(teacher[4:]), tf.constant(student[4:]))
    expected = scipy_distance(student, teacher, 7).mean()
    assert float(metric.result()) == pytest.approx(expected, rel=1e-6)
    metric.reset_state()
    metric.update_state(teacher, 3 * teacher**2)  # same ranks, other values
    assert float(metric.result()) == 0
    assert AttributionRankDistance.from_config(metric.get_config()).top_k == 7


def test_constant_maps_have_the_ranks_of_the_scan():
    rng = np.random.default_rng(2)
    teacher = rng.random((3, 4, 5)).astype("float32")
    flat = np.full_like(teacher, 0.5)
    for student, other in ((flat, teacher), (teacher, flat), (flat * 0, flat)):
        np.testing.assert_allclose(
            rank_distance(student, other, 7), scipy_distance(student, other, 7)
        )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_maps_that_are_not_finite_have_no_distance(value):
    rng = np.random.default_rng(3)
    student, teacher = rng.random((2, 3, 4, 5)).astype("float32")
    expected = scipy_distance(student, teacher, 7)
    student[1, 0, 0] = value
    got = rank_distance(student, teacher, 7).numpy()
    assert np.isnan(got[1])
    np.testing.assert_allclose(got[[0, 2]], expected[[0, 2]])
