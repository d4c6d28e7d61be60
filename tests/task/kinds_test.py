"""Decisions, ties and right answers, against NumPy written out."""

import numpy as np
import pytest

from gmpq_tf.task import Binary, Classes, Numbers, TaskError

SCORES = np.array([[0.1, 0.7, 0.2], [0.4, 0.2, 0.4], [0.3, 0.3, 0.4]])


def test_the_largest_score_decides():
    kind = Classes()
    np.testing.assert_array_equal(kind.decide(SCORES), [1, 0, 2])
    np.testing.assert_allclose(kind.margin(SCORES), [0.5, 0.0, 0.1])
    np.testing.assert_array_equal(
        Classes(-2).decide(SCORES[..., None])[:, 0], [1, 0, 2]
    )
    assert np.isinf(kind.margin(np.zeros((2, 1)))).all()
    # The same sum in another order is a tie.
    assert kind.margin(np.array([[1.0, 1.0 + 1e-7]]))[0] == 0


@pytest.mark.parametrize(
    "labels",
    [
        np.array([1, 1, 2]),
        np.array([[1.0], [1.0], [2.0]]),
        np.eye(3)[[1, 1, 2]],
        0.9 * np.eye(3)[[1, 1, 2]] + 0.1 / 3,
    ],
)
def test_right_classes(labels):
    np.testing.assert_array_equal(Classes().right(SCORES, labels), [True, False, True])


def test_right_classes_at_each_pixel():
    scores = np.random.default_rng(0).normal(size=(2, 4, 4, 3))
    labels = np.random.default_rng(1).integers(0, 3, (2, 4, 4))
    wanted = scores.argmax(-1) == labels
    one_hot = np.eye(3)[labels]
    for given in (labels, labels[..., None], one_hot):
        np.testing.assert_array_equal(Classes().right(scores, given), wanted)
    first = np.moveaxis(scores, -1, 1)
    np.testing.assert_array_equal(Classes(-3).right(first, labels), wanted)


def test_each_number_above_the_threshold():
    scores = np.array([[0.2, 0.5], [0.51, 0.9]])
    np.testing.assert_array_equal(
        Binary(0.5).decide(scores), [[False, False], [True, True]]
    )
    np.testing.assert_allclose(Binary(0.5).margin(scores), [[0.3, 0], [0.01, 0.4]])
    assert Binary(0.0).decide(np.array([0.3])).all()  # logits that lie within 0..1
    labels = np.array([[0, 1], [1, 1]])
    right = [[True, False], [True, True]]
    np.testing.assert_array_equal(Binary(0.5).right(scores, labels), right)
    np.testing.assert_array_equal(Binary(0.5).right(scores, 2 * labels - 1), right)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_number_takes_labels_of_either_shape(shape):
    labels = np.array([0, 1, 1]).reshape(shape)
    logits = np.array([[-1.0], [0.4], [-0.1]])
    np.testing.assert_array_equal(
        Binary(0.0).right(logits, labels), [[True], [True], [False]]
    )


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(TaskError, match=r"labels of shape \(2,\)"):
        Classes().right(SCORES, np.zeros(2))
    with pytest.raises(TaskError, match="from 0 to 2"):
        Classes().right(SCORES, np.array([0, 1, 3]))
    with pytest.raises(TaskError, match="from 0 to 2"):
        Classes().right(SCORES, np.array([0, 1, 0.5]))
    with pytest.raises(TaskError, match="1 and 0"):
        Binary().right(np.zeros((2, 1)), np.array([31, 12]))
    for beyond in (np.nan, -0.5, 255):
        with pytest.raises(TaskError, match=f"{beyond}.* Divide masks"):
            Binary().right(np.zeros((2, 1)), np.array([0.0, beyond]))
    with pytest.raises(TaskError, match=r"labels of shape \(3,\)"):
        Binary().right(SCORES, np.array([0, 1, 1]))


@pytest.mark.parametrize(
    ("kind", "shape", "text"),
    [
        (Classes(), (10,), "argmax of 10 classes"),
        (Classes(), (1, 1, 10), "argmax of 10 classes"),
        (Classes(), (32, 16, 2), "argmax of 2 classes at each of 32 x 16 places"),
        (Classes(-3), (2, 8, 8), "argmax of 2 classes at each of 8 x 8 places"),
        (Binary(0.5), (1,), "decisions at 0.5"),
        (Binary(0.0), (1,), "decisions above 0"),
        (Binary(0.5), (4,), "decisions at 0.5, 4 of each image"),
        (Binary(0.5), (8, 8, 1), "decisions at 0.5 at each of 8 x 8 places"),
        (Numbers(), (4,), "numbers, in steps"),
    ],
)
def test_what_is_compared_in_words(kind, shape, text):
    assert kind.compared(shape) == text
