"""Sizes and steps of the integer graph: fixed batches."""

import keras
import numpy as np
import pytest

from gmpq_tf.export.lowering import lower
from gmpq_tf.export.runtime import TFLiteModel

from .nets import NETS, L, student_of
from .nets import images as images_of


def open_sizes(content):
    details = TFLiteModel(content, use_xnnpack=False).interpreter.get_tensor_details()
    return sum(-1 in d["shape_signature"].tolist() for d in details)


@pytest.mark.parametrize("storage", ["fast", "smallest"])
@pytest.mark.parametrize("net", NETS)
def test_a_fixed_batch_is_written_everywhere_and_changes_no_output(net, storage):
    student = student_of(NETS[net](), 2, 4)
    x = images_of(student, 5)
    arrays = x if isinstance(x, list) else [x]
    free = TFLiteModel(lower(student, storage).content, use_xnnpack=False)
    for batch in (1, 2):
        content = lower(student, storage, batch=batch).content
        fixed = TFLiteModel(content, use_xnnpack=False)
        assert open_sizes(content) == 0
        assert [d["shape"][0] for d in fixed.inputs + fixed.outputs] == [batch] * len(
            fixed.inputs + fixed.outputs
        )
        for want, have in zip(free.stored(arrays), fixed.stored(arrays), strict=True):
            np.testing.assert_allclose(have, want, atol=1e-6)


def fixed_model(batch):
    inputs = keras.Input(batch_shape=(batch, 8, 8, 3))
    x = L.Conv2D(4, 3, activation="relu", name="a")(inputs)
    x = L.Dense(3, name="scores")(L.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x)


@pytest.mark.parametrize(("batch", "wanted"), [(None, None), (1, 1), (4, 4)])
def test_the_batch_is_that_of_the_model(batch, wanted):
    content = lower(student_of(fixed_model(batch), 8, 8)).content
    assert TFLiteModel(content).batch == wanted
    assert (open_sizes(content) == 0) == (wanted is not None)


def test_a_given_batch_stands_above_that_of_the_model():
    student = student_of(fixed_model(4), 8, 8)
    assert TFLiteModel(lower(student, batch=1).content).batch == 1
