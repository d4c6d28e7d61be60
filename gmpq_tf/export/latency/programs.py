"""What the file of a model consists of, at each width a weight can be stored in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from gmpq_tf.export.latency.pieces import File, pieces_of
from gmpq_tf.export.tflite.lowering import Lowered, lower
from gmpq_tf.graph import layer_macs
from gmpq_tf.latency import WIDTHS, MeasuredModel
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.transform import calibrate, quantize_model

COPIES = 4  # of a piece in one file: what a run costs besides is a quarter of it
IMAGES = 2


@dataclass
class Program:
    """Pieces of one or several files, each shape once.

    Args:
        files: key of a piece -> a file of `COPIES` of it.
    """

    files: dict[str, bytes] = field(default_factory=dict)

    def add(self, lowered: Lowered) -> list[str]:
        """Adds the pieces of a file.

        Args:
            lowered: the file.

        Returns:
            Their keys, in its order.
        """
        pieces, file = pieces_of(lowered), File(lowered.content)
        for piece in pieces:
            if piece.key not in self.files:
                self.files[piece.key] = file.cut(piece.operators, COPIES)
        return [piece.key for piece in pieces]

    def add_model(self, model: keras.Model) -> MeasuredModel:
        """Adds the pieces that any policy of a float model leads to.

        Args:
            model: a built functional model.

        Returns:
            Which operators its layers and the rest consist of.
        """
        layers: dict[str, dict[str, tuple[str, ...]]] = {}
        rest: tuple[str, ...] = ()
        for width in WIDTHS:
            policy = BitwidthPolicy.uniform(model, int(width), 8, pinned={})
            lowered = lower(student_of(model, policy), "smallest")
            self.add(lowered)
            pieces = pieces_of(lowered)
            if width == WIDTHS[0]:
                rest = tuple(piece.key for piece in pieces if not piece.kernel)
            for name in policy:
                keys = (p.key for p in pieces if p.kernel and p.layer == name)
                layers.setdefault(name, {})[width] = tuple(keys)
        return MeasuredModel(model.name, layer_macs(model), layers, rest)


def student_of(model: keras.Model, policy: BitwidthPolicy) -> keras.Model:
    """A quantized model whose ranges are those of random inputs: only time matters."""
    student = quantize_model(model, policy)
    random = np.random.default_rng(0)
    calibrate(student, {t.name: _images(random, t) for t in student.inputs})
    return student


def _images(random: np.random.Generator, tensor: Any) -> np.ndarray:
    count = tensor.shape[0] or IMAGES
    return random.normal(size=(count, *tensor.shape[1:])).astype("float32")
