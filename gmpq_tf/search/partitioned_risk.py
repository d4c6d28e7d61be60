"""A generalization risk that compares groups of pixels (after R-GMPQ)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.attribution.target import normalized
from gmpq_tf.bits import LayerPair
from gmpq_tf.search.attribution_risk import Generalization


class Partitioned(Generalization):
    """`R_G` of groups of pixels that have similar ranks in the teacher's map.

    `sum_g n_g (mean_g M_q - mean_g T)^2`, mean over the batch, with `n_g` pixels in
    group g and the target `T = M_f^p / sum M_f^p`. Exchanging pixels within a group
    costs nothing, so noise in their ranks does not matter. Group sizes double from the
    highest pixels down; with one pixel per group it is GMPQ's risk. The exponent moves
    from 1 in the first epoch to that of eq. 8 in the last.

    This is a reconstruction from the abstract of "Learning Generalizable
    Mixed-Precision Quantization via Attribution Imitation", IJCV 2024 (R-GMPQ), which
    names the groups, their shared value and the moving exponent, but no formula.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        add_weight = args[3] if len(args) > 3 else None
        self.progress = None
        if add_weight is not None:
            self.progress = add_weight(
                name="exponent_ramp", shape=(), initializer="ones", trainable=False
            )

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Sets how far the exponent has moved from 1 to that of eq. 8, 0 to 1."""
        if self.progress is not None:
            self.progress.assign(epoch / (epochs - 1) if epochs > 1 else 1.0)

    def exponent(self, bits: Sequence[LayerPair]) -> tf.Tensor:
        """The exponent of this epoch, a scalar."""
        p = super().exponent(bits)
        if self.progress is None:
            return p
        return 1 + tf.convert_to_tensor(self.progress) * (p - 1)

    def distance(
        self, student: tf.Tensor, teacher: tf.Tensor, p: tf.Tensor
    ) -> tf.Tensor:
        """`partitioned_risk` of maps [A, H, W], a scalar."""
        return partitioned_risk(
            student, teacher, p, self.config.top_k, self.config.groups
        )


def partitioned_risk(
    student: tf.Tensor, teacher: tf.Tensor, p: tf.Tensor, top_k: int, groups: int
) -> tf.Tensor:
    """The risk of `Partitioned`.

    Args:
        student: maps of the hypernet, [A, H, W], non-negative.
        teacher: maps of the float model, same shape; treated as constant.
        p: exponent of the target, a scalar; treated as constant.
        top_k: number of pixels that count, the highest of the teacher's map.
        groups: number of groups.

    Returns:
        Scalar >= 0.
    """
    teacher, p = tf.stop_gradient(teacher), tf.stop_gradient(p)
    pixels = teacher.shape[1] * teacher.shape[2]
    target = tf.reshape(normalized(teacher, p), [-1, pixels])
    own = tf.reshape(normalized(student), [-1, pixels])
    count = min(top_k, pixels)
    order = tf.math.top_k(tf.reshape(teacher, [-1, pixels]), count).indices
    sizes = group_sizes(count, groups)
    means = np.repeat(np.diag(1 / np.array(sizes)), sizes, axis=0)
    gap = tf.gather(own - target, order, batch_dims=1) @ tf.constant(means, own.dtype)
    seen = tf.reduce_sum(target, axis=1)
    of_image = tf.linalg.matvec(tf.square(gap), tf.constant(sizes, own.dtype)) * seen
    images = tf.cast(tf.maximum(tf.shape(of_image)[0], 1), own.dtype)
    return tf.reduce_sum(of_image) / images


def group_sizes(pixels: int, groups: int) -> list[int]:
    """Sizes of groups, each about twice the one before, with the sum `pixels`."""
    groups = min(groups, pixels)
    shares = (2.0 ** np.arange(1, groups + 1) - 1) / (2.0**groups - 1)
    ends = np.maximum(np.round(shares * pixels), np.arange(1, groups + 1))
    # Leave at least one pixel to each group that follows.
    ends = np.minimum(ends, pixels - np.arange(groups)[::-1]).astype(int)
    return np.diff(ends, prepend=0).tolist()
