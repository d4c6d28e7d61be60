"""Warns early if nothing guides a search: labels without a class, empty maps."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import tensorflow as tf

from gmpq_tf.attribution import are_classes

ENOUGH_IMAGES = 32  # images seen before the first check
MOST = 0.5  # share of unusable labels or maps above which a warning is given


class MapCount(keras.metrics.Metric):
    """Counts images, labels that are not a class, and teacher maps of zeros."""

    def __init__(self, name: str = "map_count", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.images, self.strangers, self.empty = (
            self.add_variable(shape=(), initializer="zeros", name=each)
            for each in ("images", "strangers", "empty")
        )

    def update_state(
        self, maps: tf.Tensor, classes: tf.Tensor | None, num_classes: int
    ) -> None:
        """Counts a batch.

        Args:
            maps: maps of the teacher, [B, H, W].
            classes: what `labels_to_classes` returned, [B] or [B, C]; None: the
                predicted classes.
            num_classes: number of scores of the model.
        """
        empty = tf.reduce_max(maps, axis=(1, 2)) == 0
        self.images.assign_add(tf.cast(tf.shape(maps)[0], tf.float32))
        self.empty.assign_add(tf.reduce_sum(tf.cast(empty, tf.float32)))
        if classes is not None:
            strangers = ~are_classes(classes, num_classes)
            self.strangers.assign_add(tf.reduce_sum(tf.cast(strangers, tf.float32)))

    def result(self) -> tuple[float, float, float]:
        """Number of images, share of labels without a class, share of empty maps."""
        images, strangers, empty = (
            float(keras.ops.convert_to_numpy(v))
            for v in (self.images, self.strangers, self.empty)
        )
        return images, strangers / max(images, 1.0), empty / max(images, 1.0)


class FirstSteps(keras.callbacks.Callback):
    """Warns if most labels or teacher maps are unusable.

    It checks after the first 32 images, and once more when the first epoch ends. It
    also tells the risks when an epoch begins.
    """

    def on_train_begin(self, logs: Any = None) -> None:
        """Resets the counts of images and maps."""
        guide = self.model.generalization
        self.counts = guide and guide.map_count
        self.looks, self.warned = 0, set[str]()
        if self.counts is not None:
            self.counts.reset_state()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Tells the risks which epoch begins."""
        for risk in self.model.risks:
            risk.begin_epoch(epoch, self.params["epochs"])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Checks once, as soon as enough images have been seen."""
        if self.looks == 0 and self.counts is not None:
            images, *shares = self.counts.result()
            if images >= ENOUGH_IMAGES:
                self.look(images, *shares)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Counts the epoch, and checks once more after the first."""
        self.model.epochs_trained += 1
        if self.looks < 2 and self.counts is not None:
            self.look(*self.counts.result())
            self.looks = 2

    def look(self, images: float, strangers: float, empty: float) -> None:
        """Warns of unusable labels or maps, once each.

        Args:
            images: number of images seen so far.
            strangers: share of labels that are not a class.
            empty: share of teacher maps that are all zero.
        """
        self.looks += 1
        guide = self.model.generalization
        scores = guide.num_scores
        if strangers > MOST and guide.of_boxes:
            self._warn(
                "labels",
                f"{strangers:.1%} of the first {images:.0f} images have no object, and "
                "with it no attribution map. Check the labels.",
            )
        elif strangers and not (guide.independent_labels or guide.of_boxes):
            self._warn(
                "labels",
                f"{strangers:.1%} of the labels of the first {images:.0f} images are "
                f"no classes of the model, which are 0 to {max(scores, 2) - 1}: these "
                "images have no attribution map. Check the labels (whole numbers from "
                "0, or one row of scores an image).",
            )
        elif strangers > MOST:
            self._warn(
                "labels",
                f"{strangers:.1%} of the first {images:.0f} images have no label "
                "above 0.5, and with it no attribution map. Check the labels.",
            )
        if empty > MOST:
            self._warn(
                "maps",
                f"{empty:.1%} of the teacher's attribution maps of the first "
                f"{images:.0f} images are all zero ({strangers:.1%} for want of a "
                "class; in the others no active channel of the layer "
                f"{guide.feature_name!r} speaks for the class), so the generalization "
                "risk hardly guides the search. Check that labels and image scaling "
                "are those that the model was trained with, name another "
                "feature_layer, or search with eta=0.",
            )

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            warnings.warn(text, stacklevel=2)
