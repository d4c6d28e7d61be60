"""The pieces of a model's files, for each width in which weights can be stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from gmpq_tf.export.latency.pieces import File, pieces_of
from gmpq_tf.export.tflite.lowering import Lowered, lower
from gmpq_tf.graph import layer_macs, outline
from gmpq_tf.latency import WIDTHS, MeasuredModel
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.transform import calibrate, quantize_model

COPIES = 4  # of a piece in one file, which divides the overhead of a run by four
IMAGES = 2


@dataclass
class Program:
    """Pieces of one or several files, each shape once.

    Args:
        files: key of a piece -> a file with `COPIES` copies of it.
    """

    files: dict[str, bytes] = field(default_factory=dict)

    def add(self, lowered: Lowered) -> list[str]:
        """Adds the pieces of a file.

        Args:
            lowered: the file.

        Returns:
            The keys of the pieces, in the order of the file.
        """
        pieces, file = pieces_of(lowered), File(lowered.content)
        for piece in pieces:
            if piece.key not in self.files:
                self.files[piece.key] = file.cut(piece.operators, COPIES)
        return [piece.key for piece in pieces]

    def add_model(self, model: keras.Model) -> MeasuredModel:
        """Adds all pieces that policies of a float model can lead to.

        Args:
            model: a built functional model.

        Returns:
            The keys of the pieces of each layer and of the rest of the model.
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
        macs = layer_macs(model)
        return MeasuredModel(model.name, macs, layers, rest, outline(model))


def student_of(model: keras.Model, policy: BitwidthPolicy) -> keras.Model:
    """A quantized model calibrated on random inputs, which suffices for timing."""
    student = quantize_model(model, policy)
    random = np.random.default_rng(0)
    calibrate(student, {t.name: _images(random, t) for t in student.inputs})
    return student


def _images(random: np.random.Generator, tensor: Any) -> np.ndarray:
    count = tensor.shape[0] or IMAGES
    return random.normal(size=(count, *tensor.shape[1:])).astype("float32")
