"""Object detection: boxes, matching, losses, decoding of outputs, metrics.

Boxes are (ymin, xmin, ymax, xmax) relative to the image's height and width, 0 to 1.
"""

from gmpq_tf.detection.coco_ap import CocoAP
from gmpq_tf.detection.default_boxes import BoxError, DefaultBoxes, ssd_boxes
from gmpq_tf.detection.default_boxes_layer import DefaultBoxesLayer, default_boxes_of
from gmpq_tf.detection.detections import Detections, decode_and_suppress, suppress
from gmpq_tf.detection.losses import BoxLoss, HardNegativeCrossEntropy
from gmpq_tf.detection.matching import match, targets
from gmpq_tf.detection.mean_ap import APReport, ClassAP, MeanAP

__all__ = [
    "APReport",
    "BoxError",
    "BoxLoss",
    "ClassAP",
    "CocoAP",
    "DefaultBoxes",
    "DefaultBoxesLayer",
    "Detections",
    "HardNegativeCrossEntropy",
    "MeanAP",
    "decode_and_suppress",
    "default_boxes_of",
    "match",
    "ssd_boxes",
    "suppress",
    "targets",
]
