"""The images and the one-hot hypernet of `transfer_bank.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from post_training_options import mobilenet_v2

import gmpq_tf as gmpq
from gmpq_tf.attribution import grad_cam, split_head
from gmpq_tf.budget import Candidates
from gmpq_tf.policy.draw import draw_bits
from gmpq_tf.search.problem import SearchProblem
from gmpq_tf.transform import build_hypernet

SIDE, CROP, BATCH = 256, 224, 32
SPACE = gmpq.SearchSpace((4, 5, 6, 8), (4, 5, 6, 8))
BUDGETS = ("W5A5", "W6A6")
CALIBRATED = 64  # images that set ranges
TRAINED = 1000  # images of a proxy that its classifier learns from
CHOSEN, LEFT_OUT = 0.0, -1e4  # importances whose softmax is exactly 1 and 0
Bits = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Images:
    """Photographs [n, 224, 224, 3] in -1..1, and their labels [n]."""

    inputs: np.ndarray
    labels: np.ndarray

    def __getitem__(self, rows: slice) -> Images:
        return Images(self.inputs[rows], self.labels[rows])

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self) -> Iterator[Images]:
        """32 images at a time."""
        for start in range(0, len(self), BATCH):
            yield self[start : start + BATCH]

    def digest(self) -> str:
        """16 hex digits that change with them."""
        found = hashlib.sha256(np.ascontiguousarray(self.inputs).tobytes())
        found.update(np.ascontiguousarray(self.labels).tobytes())
        return found.hexdigest()[:16]


def imagenet(folder: Path) -> tuple[Images, Images]:
    """The 500 photographs: those at even places only ever test, the others are used."""
    builder = tfds.builder_from_directory(str(folder / "tfds/nips2017_dev/1.0.0"))
    (split,) = builder.info.splits
    data = builder.as_dataset(split=split, shuffle_files=False)
    whole = _images((x["image"], x["label"]) for x in data)
    return whole[0::2], whole[1::2]


def flowers17(folder: Path) -> Images:
    """Photographs of Flowers-17, in a seeded order."""
    builder = tfds.ImageFolder(str(folder / "flowers17"))
    data = [builder.as_dataset(split=name, shuffle_files=False)
            for name in ("train", "validation")]  # fmt: skip
    files = [(x["image"], int(x["label"])) for part in data for x in part]
    order = np.random.default_rng(0).permutation(len(files))
    return _images(files[i] for i in order)


def cifar10(folder: Path) -> Images:
    """Training images of CIFAR-10, enlarged from 32 pixels."""
    count = CALIBRATED + TRAINED + 256
    data = tfds.load(
        "cifar10",
        data_dir=str(folder / "tfds"),
        download=False,
        split=f"train[:{count}]",
        shuffle_files=False,
    )
    return _images((x["image"], x["label"]) for x in data)


def _images(pairs: Any) -> Images:
    found = [(np.asarray(prepare(x), "float32"), int(y)) for x, y in pairs]
    return Images(np.stack([x for x, _ in found]), np.array([y for _, y in found]))


def prepare(image: tf.Tensor) -> tf.Tensor:
    """Shorter side to 256 pixels, the middle 224 x 224, values -1..1."""
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    scaled = tf.cast(tf.round(size * SIDE / tf.reduce_min(size)), tf.int32)
    image = tf.image.resize(image, scaled, antialias=True)
    return tf.image.resize_with_crop_or_pad(image, CROP, CROP) / 127.5 - 1


# Proxy -> its images; the first calibrate, the next train its classifier, the last are
# measured on.
PROXIES: dict[str, Callable[[Path], Images]] = {
    "flowers17": flowers17,
    "cifar10": cifar10,
}


class Network:
    """MobileNetV2, and its hypernet with the policy that was chosen last.

    Args:
        weights: of keras.applications, a file.
        calibration: images that set the ranges.
    """

    def __init__(self, weights: Path, calibration: Images) -> None:
        keras.utils.set_random_seed(0)
        self.model = mobilenet_v2(str(weights))
        self.calibration = calibration

    def problem(self, budget: str) -> SearchProblem:
        """Candidates, costs and the limit of a budget."""
        return SearchProblem.of(self.model, SPACE, None, budget)

    @property
    def candidates(self) -> Candidates:
        """(weight bits, activation bits) that each layer may take."""
        return SPACE.candidates(self.model)

    def build(self) -> None:
        """Build the hypernet, calibrate it, and split both networks at the features."""
        self.hypernet = build_hypernet(self.model, SPACE)
        gmpq.calibrate(self.hypernet, [b.inputs for b in self.calibration.batches()])
        self.student = split_head(self.hypernet)
        self.teacher = split_head(self.model)

    def choose(self, bits: Bits) -> None:
        """Make a policy's branches the only ones."""
        for name, pair in bits.items():
            layer = self.hypernet.get_layer(name)
            for variable, candidates, width in (
                (layer.kernel_importance, layer.weight_bits, pair[0]),
                (layer.input_importance, layer.activation_bits, pair[1]),
            ):
                places = np.array(candidates) == width
                assert places.sum() == 1, (name, pair)
                variable.assign(np.where(places, CHOSEN, LEFT_OUT))


def random_policy(network: Network, budget: str, seed: int) -> Bits:
    """As `BitwidthPolicy.random` draws it within a budget."""
    problem = network.problem(budget)
    return draw_bits(problem.candidates, problem.limits, seed)


def drawn(network: Network, count: int) -> Iterator[tuple[str, Bits]]:
    """The uniform policy of each budget and random ones, by turns, with their names."""
    for budget in BUDGETS:
        width = int(budget[1])
        policy = gmpq.BitwidthPolicy.uniform(network.model, width, width)
        bits = {n: (b.weight_bits, b.activation_bits) for n, b in policy.items()}
        yield f"uniform {budget}", bits
    for seed in range(count):
        for budget in BUDGETS:
            yield f"random {budget} {seed}", random_policy(network, budget, seed)


def compiled(backbone: keras.Model, heads: dict[str, keras.Model]) -> Callable:
    """(images, head -> classes) -> head -> (logits [n, C], Grad-CAM maps [n, h, w])."""

    @tf.function(reduce_retracing=True)
    def run(images: Any, classes: dict[str, Any]) -> dict[str, tuple]:
        feature = backbone(images, training=False)
        found = {}
        for name, head in heads.items():
            maps, (logits, _) = grad_cam(head, feature, classes[name], training=False)
            found[name] = (logits, maps)
        return found

    return run


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Of each row, in float64."""
    scores = scores.astype("float64")
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def divergence(scores: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of each row from the teacher's, nats."""
    own, target = log_softmax(scores), log_softmax(teacher)
    return (np.exp(target) * (target - own)).sum(-1)


def cross_entropy(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each row and its label, nats."""
    return -log_softmax(scores)[np.arange(len(labels)), labels]


def linear_head(features: np.ndarray, labels: np.ndarray, shape: tuple) -> keras.Model:
    """A classifier on the mean features: feature map -> [logits, the same].

    Args:
        features: means over the pixels, [n, C].
        labels: [n].
        shape: of a feature map, (h, w, C).
    """
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(int(labels.max()) + 1, name="own")
    linear = keras.Sequential([keras.Input(features.shape[1:]), dense])
    linear.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    linear.fit(features, labels, epochs=40, batch_size=50, verbose=0)
    feature = keras.Input(shape)
    logits = dense(keras.layers.GlobalAveragePooling2D()(feature))
    return keras.Model(feature, [logits, keras.layers.Identity()(logits)])


def mean(digits: str) -> float:
    """Share of ones."""
    return digits.count("1") / len(digits)


def plain(array: Any) -> list[float]:
    """As a list of numbers of five digits."""
    return [float(f"{v:.5g}") for v in np.asarray(array, "float64").ravel()]


def key_of(bits: Mapping[str, tuple[int, int]]) -> dict[str, list[int]]:
    """A policy as the key of a journal."""
    return {name: list(pair) for name, pair in bits.items()}


def weights(shared: Path) -> Path:
    """The file of the float model."""
    return shared / "weights/mobilenet_v2_imagenet.weights.h5"
