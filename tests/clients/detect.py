"""Detect objects by MediaPipe: detect.py MODEL PIXELS.npz FOUND.json [SCORE].

PIXELS.npz holds uint8 [images, height, width, 3]; FOUND.json gets, for each image, the
name, score and box (left, top, width, height, in pixels) of each object.
"""

import json
import sys
from pathlib import Path

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision


def main(model, pixels, found, score=0.0):
    options = vision.ObjectDetectorOptions(
        BaseOptions(model_asset_buffer=Path(model).read_bytes()),
        score_threshold=float(score),
        max_results=-1,
    )
    images = []
    with vision.ObjectDetector.create_from_options(options) as detector:
        for data in next(iter(np.load(pixels).values())):
            result = detector.detect(mp.Image(mp.ImageFormat.SRGB, np.array(data)))
            images.append(list(map(row_of, result.detections)))
    Path(found).write_text(json.dumps(images), encoding="utf-8")


def row_of(detection):
    box, (best, *_) = detection.bounding_box, detection.categories
    place = (box.origin_x, box.origin_y, box.width, box.height)
    return best.category_name or best.index, best.score, place


if __name__ == "__main__":
    main(*sys.argv[1:])
