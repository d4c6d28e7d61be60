"""Source of scikit-learn's handwritten digits, which need no download."""

import numpy as np

from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.spec import TEST_FRACTION, DatasetSpec, Raw
from gmpq_tf.data.splits import ArraySplit, stratified_split


def load_digits(config: DataConfig, spec: DatasetSpec) -> Raw:
    """Loads scikit-learn's 1,797 handwritten digits of 8 x 8 pixels.

    20 % of each class are the test split. Pixels of 0..16 are scaled to 0..255. Source:
    Alpaydin and Kaynak, UCI repository, 1998.
    """
    from sklearn.datasets import load_digits as load

    digits = load()
    images = np.round(digits.images * (255.0 / 16.0)).astype(np.uint8)[..., None]
    channels = config.channels or 1
    images = np.repeat(images, channels, axis=-1)
    labels = digits.target.astype(np.int64)
    kept, held = stratified_split(labels, TEST_FRACTION)
    splits = {
        "train": ArraySplit(images[kept], labels[kept]),
        "test": ArraySplit(images[held], labels[held]),
    }
    names = tuple(str(digit) for digit in range(10))
    return Raw(splits, (8, 8, channels), names, stored_channels=1)
