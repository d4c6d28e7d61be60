"""Policies: how many bits each layer of a model gets. No TensorFlow."""

from gmpq_tf.bits import LayerBits, PolicyError, check_bits, check_pinned
from gmpq_tf.policy.diff import PolicyDiff, RankCorrelation
from gmpq_tf.policy.policy import BitwidthPolicy

__all__ = [
    "BitwidthPolicy",
    "LayerBits",
    "PolicyDiff",
    "PolicyError",
    "RankCorrelation",
    "check_bits",
    "check_pinned",
]
