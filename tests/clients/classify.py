"""Classify images by MediaPipe: classify.py MODEL PIXELS.npz SCORES.json.

PIXELS.npz holds uint8 [images, height, width, 3]; SCORES.json gets, for each image, the
score of each class name.
"""

import json
import sys
from pathlib import Path

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision


def main(model, pixels, scores):
    options = vision.ImageClassifierOptions(
        BaseOptions(model_asset_buffer=Path(model).read_bytes())
    )
    found = []
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for data in next(iter(np.load(pixels).values())):
            result = classifier.classify(mp.Image(mp.ImageFormat.SRGB, np.array(data)))
            categories = result.classifications[0].categories
            found.append({c.category_name or c.index: c.score for c in categories})
    Path(scores).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
