"""What `fit` of a search takes: structures of arrays, data sets, weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.search import PolicySearch

layers = keras.layers
rng = np.random.default_rng(0)
PHOTO, DEPTH = (rng.random((24, 6, 6, c)).astype("float32") for c in (3, 1))
LABELS = rng.integers(0, 2, 24)
WEIGHTS = rng.random(24).astype("float32")


def two_inputs(as_dict):
    """Two images, merged before the feature map; sorted names are the other way."""
    photo = keras.Input((6, 6, 3), name="photo")
    depth = keras.Input((6, 6, 1), name="depth")
    both = layers.Concatenate()(
        [layers.Conv2D(2, 3)(photo), layers.Conv2D(2, 3)(depth)]
    )
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(both))
    inputs = {"photo": photo, "depth": depth} if as_dict else [photo, depth]
    return keras.Model(inputs, layers.Dense(2)(x))


class Batches(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 2

    def __getitem__(self, index):
        part = slice(12 * index, 12 * index + 12)
        cut = keras.tree.map_structure(lambda a: a[part], self.x)
        cut = tuple(cut) if isinstance(cut, list) else cut  # Keras would stack lists
        return cut, LABELS[part], WEIGHTS[part]


def data_set(x):
    x = tuple(x) if isinstance(x, list) else x
    return tf.data.Dataset.from_tensor_slices((x, LABELS, WEIGHTS)).batch(12)


GIVEN = {
    "list": [PHOTO, DEPTH],
    "tuple": (PHOTO, DEPTH),
    "dict": {"depth": DEPTH, "photo": PHOTO},
}


@pytest.fixture(scope="module")
def searches():
    """One search a kind of model; nothing that it trains moves."""
    made = {}
    for as_dict in (False, True):
        keras.utils.set_random_seed(0)
        search = PolicySearch(two_inputs(as_dict), eta=1.0)
        search.compile(
            keras.optimizers.SGD(0.0),
            keras.optimizers.SGD(0.0),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=["accuracy"],
            run_eagerly=True,
        )
        made[as_dict] = search
    return made


def expected_task(search):
    x = (
        GIVEN["dict"]
        if search.hypernet._inputs_struct.__class__ is dict
        else GIVEN["list"]
    )
    scores = search.hypernet(x, training=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return float(loss(LABELS, scores, WEIGHTS))


@pytest.mark.quick_rows(2)
@pytest.mark.filterwarnings("ignore:.*are all zero")
@pytest.mark.parametrize("source", ["arrays", "tf.data", "PyDataset"])
@pytest.mark.parametrize(
    ("as_dict", "kind"),
    [(False, "list"), (False, "tuple"), (False, "dict"), (True, "dict")],
)
def test_inputs_reach_the_layers_of_their_names(searches, as_dict, kind, source):
    search, x = searches[as_dict], GIVEN[kind]
    for quantizer in search.mixed_layers():
        quantizer.input_quantizer.calibrated.assign(
            np.zeros_like(quantizer.input_quantizer.calibrated)
        )
    options = {"verbose": 0, "shuffle": False}
    if source == "arrays":
        options |= {"batch_size": 12, "sample_weight": WEIGHTS}
        given = (x, LABELS)
        validation = (x, LABELS, WEIGHTS)
    elif source == "tf.data":
        given, validation = (data_set(x),), data_set(x)
    else:
        given, validation = (Batches(x),), Batches(x)
    logs = search.fit(*given, validation_data=validation, **options).history
    assert logs["task_risk"][0] == pytest.approx(expected_task(search), rel=1e-4)
    assert logs["val_loss"][0] == pytest.approx(expected_task(search), rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*are all zero")
def test_class_weights_are_keras_own(searches):
    search = searches[False]
    logs = search.fit(
        GIVEN["list"], LABELS, batch_size=24, class_weight={0: 1.0, 1: 3.0}, verbose=0
    ).history
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    scores = search.hypernet(GIVEN["list"], training=True)
    own = float(loss(LABELS, scores, np.where(LABELS, 3.0, 1.0)))
    assert logs["task_risk"][0] == pytest.approx(own, rel=1e-4)
