"""Digits against those of scikit-learn."""

import numpy as np
from sklearn.datasets import load_digits

from gmpq_tf.data import DataConfig, load_dataset


def test_digits_are_those_of_scikit_learn():
    dataset = load_dataset(DataConfig("digits", scaling="0..255", validation_size=0))
    images = np.concatenate([dataset.splits[n].images for n in ("train", "test")])
    original = np.round(load_digits().images * 255 / 16)
    assert images.shape == (1797, 8, 8, 1)
    assert sorted(map(bytes, images)) == sorted(map(bytes, original.astype(np.uint8)))
