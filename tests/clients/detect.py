"""Detect objects by MediaPipe: detect.py MODEL PIXELS.npz FOUND.json [SCORE [all]].

PIXELS.npz holds uint8 [images, height, width, 3]; FOUND.json gets, for each image, the
name, score and box (left, top, width, height, in pixels) of each object; with "all"
also the names and scores of all its classes.
"""

import json
import sys
from pathlib import Path

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision


def main(model, pixels, found, score=0.0, shown="best"):
    options = vision.ObjectDetectorOptions(
        BaseOptions(model_asset_buffer=Path(model).read_bytes()),
        score_threshold=float(score),
        max_results=-1,
    )
    images = []
    with vision.ObjectDetector.create_from_options(options) as detector:
        for data in next(iter(np.load(pixels).values())):
            result = detector.detect(mp.Image(mp.ImageFormat.SRGB, np.array(data)))
            rows = [row_of(each, shown == "all") for each in result.detections]
            images.append(rows)
    Path(found).write_text(json.dumps(images), encoding="utf-8")


def row_of(detection, every):
    box, (best, *_) = detection.bounding_box, detection.categories
    place = (box.origin_x, box.origin_y, box.width, box.height)
    row = (best.category_name or best.index, best.score, place)
    classes = [(c.category_name, c.score) for c in detection.categories]
    return (*row, classes) if every else row


if __name__ == "__main__":
    main(*sys.argv[1:])
