"""Augmentation against every shift and flip that NumPy can make."""

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.data.augment import AUGMENTATIONS, augment_batch


def possible_images(image, shift, flip):
    """Every outcome, by (top, left, mirrored)."""
    padded = np.pad(image, [(shift, shift), (shift, shift), (0, 0)])
    height, width = image.shape[:2]
    outcomes = {}
    for top in range(2 * shift + 1):
        for left in range(2 * shift + 1):
            crop = padded[top : top + height, left : left + width]
            outcomes[top, left, False] = crop
            if flip:
                outcomes[top, left, True] = crop[:, ::-1]
    return outcomes


@pytest.mark.parametrize(
    "name, side, shift", [("none", 8, 0), ("shift", 8, 1), ("flip_crop", 16, 2)]
)
def test_every_outcome_is_a_shift_and_all_occur(name, side, shift):
    image = np.random.default_rng(0).integers(1, 256, (side, side, 3), np.uint8)
    batch = tf.constant(np.repeat(image[None], 400, axis=0))
    result = augment_batch(batch, AUGMENTATIONS[name], tf.constant([1, 2])).numpy()
    outcomes = possible_images(image, shift, AUGMENTATIONS[name].flip)
    seen = set()
    for each in result:
        matches = [k for k, v in outcomes.items() if np.array_equal(v, each)]
        assert matches
        seen.update(matches)
    assert seen == set(outcomes)


def test_cifar_recipe_shifts_by_four():
    assert AUGMENTATIONS["flip_crop"].largest_shift(32) == 4
    assert AUGMENTATIONS["shift"].largest_shift(8) == 1


def test_random_crops_flip_and_do_not_shift():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    batch = tf.constant(np.repeat(image[None], 64, axis=0))
    for name in ("random_crop", "random_resized_crop"):
        result = augment_batch(batch, AUGMENTATIONS[name], tf.constant([1, 2])).numpy()
        plain = [np.array_equal(each, image) for each in result]
        mirrored = [np.array_equal(each, image[:, ::-1]) for each in result]
        assert sum(plain) + sum(mirrored) == 64
        assert 16 < sum(mirrored) < 48


def test_same_seed_same_result():
    batch = tf.random.stateless_uniform([16, 8, 8, 1], [0, 0])
    first, again, other = (
        augment_batch(batch, AUGMENTATIONS["shift"], tf.constant([0, seed])).numpy()
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
