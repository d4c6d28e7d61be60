"""A network with one right answer (four bits where the others would lose something).

One input channel has sixteen values, the other two. Branch A reads the first with a
kernel of -1, 0 and 1, branch B the second with one of -7 to 7: A needs 4-bit inputs and
2-bit weights, B 2-bit inputs and 4-bit weights. With equal multiply-adds m and
candidates 2 to 4, W2A4 and W4A2 cost 16 m together, and no other policy of that budget
loses nothing.
"""

import keras
import numpy as np

from gmpq_tf.cost import count_cost
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.space import SearchSpace

RIGHT = {"branch_a": (2, 4), "branch_b": (4, 2)}
CHANNELS = 6
SPACE = SearchSpace(
    pinned={"select_a": (8, 8), "select_b": (8, 8), "classifier": (8, 8)}
)


def toy_model(seed: int = 0) -> keras.Model:
    """The float network, 8x8 images of two channels, five classes."""
    rng = np.random.default_rng(seed)
    inputs = keras.Input((8, 8, 2), name="image")
    branches = []
    for name, channel in (("a", 0), ("b", 1)):
        select = keras.layers.Conv2D(
            1, 1, activation="relu", use_bias=False, name=f"select_{name}"
        )
        selected = select(inputs)
        select.set_weights([np.eye(2)[:, channel].reshape(1, 1, 2, 1)])
        conv = keras.layers.Conv2D(CHANNELS, 3, use_bias=False, name=f"branch_{name}")
        branches.append(conv(selected))
        kernel = np.stack([_kernel(name, rng) for _ in range(CHANNELS)], axis=-1)
        conv.set_weights([kernel.reshape(3, 3, 1, CHANNELS)])
    x = keras.layers.ReLU(name="relu")(keras.layers.Add(name="add")(branches))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    classifier = keras.layers.Dense(5, name="classifier")
    model = keras.Model(inputs, classifier(x), name="toy")
    # Each feature says as much as the others, and each class is seen.
    features = np.asarray(keras.Model(inputs, x)(toy_images()))
    weights = rng.normal(size=(CHANNELS, 5)) / features.std(axis=0)[:, None]
    classifier.set_weights([weights, -features.mean(axis=0) @ weights])
    return model


def _kernel(name: str, rng: np.random.Generator) -> np.ndarray:
    if name == "a":
        return rng.permutation([-1, -1, -1, 0, 0, 0, 1, 1, 1]) / 4
    levels = [7, *rng.choice([-6, -5, -3, -2, -1, 1, 2, 3, 5, 6], 8, replace=False)]
    return rng.permutation(levels) / 7


def toy_images(count: int = 96, seed: int = 1) -> np.ndarray:
    """Images whose values 2- to 4-bit grids hold exactly where they can."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 16, (count, 8, 8)) / 15
    second = rng.integers(0, 2, (count, 8, 8))
    return np.stack([first, second], axis=-1).astype("float32")


def toy_budget(model: keras.Model) -> float:
    """Bit operations of the right answer, exactly."""
    pinned = dict.fromkeys(SPACE.pinned, (8, 8))
    return float(count_cost(model, BitwidthPolicy("toy", {**pinned, **RIGHT})).bit_ops)
