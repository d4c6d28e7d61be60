"""What callers bring as data: every form gives the same batches, by name."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import gmpq_tf as gmpq
from gmpq_tf.graph import read_graph, searchable_names
from gmpq_tf.inputs import InputError
from gmpq_tf.transform import batches as module
from gmpq_tf.transform.batches import (
    ModelInputs,
    batches_of,
    inference_batch,
    input_batches,
)
from gmpq_tf.transform.calibrate import CalibrationError, first_images

N = 10
RANDOM = np.random.default_rng(0)
# Two inputs of one shape: only their names tell them apart.
Z = RANDOM.uniform(0, 1, (N, 4, 4, 1)).astype("float32")
A = RANDOM.uniform(0, 9, (N, 4, 4, 1)).astype("float32")
Y = np.arange(N)


def two_inputs(kind="list", batch=None):
    """`z` and `a`, in this order, which is not that of their sorted names."""
    z, a = (keras.Input(batch_shape=(batch, 4, 4, 1), name=n) for n in "za")
    left = layers.Conv2D(2, 3, name="left", activation="relu")(z)
    right = layers.Conv2D(2, 3, name="right", activation="relu")(a)
    x = layers.Flatten()(layers.Concatenate()([left, right]))
    inputs = {"list": [z, a], "tuple": (z, a), "dict": {"z": z, "a": a}}[kind]
    return keras.Model(inputs, layers.Dense(2, name="head")(x), name="two")


class Pairs(keras.utils.PyDataset):
    """Batches of 4, 4 and 2."""

    def __init__(self, x, y=None):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 3

    def __getitem__(self, index):
        part = slice(4 * index, 4 * index + 4)
        x = keras.tree.map_structure(lambda v: v[part], self.x)
        return x if self.y is None else (x, self.y[part])


def by_name():
    return {"a": A, "z": Z}


def listed(make):
    """Batches of 4 of what `make` makes from rows."""
    return [make(slice(i, i + 4)) for i in range(0, N, 4)]


FORMS = {
    "dict": lambda: by_name(),
    "dict with more": lambda: {**by_name(), "id": Y},
    "list": lambda: [Z, A],
    "tuple": lambda: (Z, A),
    "tf.data of dicts": lambda: tf.data.Dataset.from_tensor_slices(by_name()).batch(4),
    "tf.data of pairs": lambda: tf.data.Dataset.from_tensor_slices(
        (by_name(), Y)
    ).batch(4),
    "tf.data with weights": lambda: tf.data.Dataset.from_tensor_slices(
        (by_name(), Y, np.ones(N))
    ).batch(4),
    "tf.data of tuples": lambda: tf.data.Dataset.from_tensor_slices(((Z, A), Y)).batch(
        4
    ),
    "PyDataset": lambda: Pairs(by_name(), Y),
    "generator": lambda: iter(listed(lambda p: ({"z": Z[p], "a": A[p]}, Y[p]))),
    "batches of lists": lambda: listed(lambda p: [[Z[p], A[p]], Y[p]]),
    "bare batches": lambda: listed(lambda p: (Z[p], A[p])),
    "an empty batch": lambda: [
        *listed(lambda p: [Z[p], A[p]]),
        {"a": A[:0], "z": Z[:0]},
    ],
}


@pytest.mark.parametrize("kind", ["list", "tuple"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(form, kind):
    inputs = ModelInputs(read_graph(two_inputs(kind)))
    found = list(input_batches(inputs, FORMS[form]()))
    z, a = (np.concatenate(parts) for parts in zip(*found, strict=True))
    np.testing.assert_array_equal(z, Z)
    np.testing.assert_array_equal(a, A)


@pytest.mark.parametrize("form", [f for f in FORMS if "dict" in f or "Py" in f])
def test_a_model_built_with_a_dict_is_read_by_name(form):
    model = two_inputs("dict")
    inputs = ModelInputs(read_graph(model))
    for arrays in input_batches(inputs, FORMS[form]()):
        given = inputs.structured(arrays)
        assert list(given) == ["z", "a"]
        rows = len(given["z"])
        assert given["a"].max() > 1 >= given["z"].max()
        assert rows in (2, 4, N)


def test_a_list_for_a_dict_is_refused_where_shapes_do_not_tell():
    inputs = ModelInputs(read_graph(two_inputs("dict")))
    with pytest.raises(InputError, match="Pass a dict with 'z', 'a'"):
        inputs.read([Z, A])


def test_a_list_for_a_dict_is_in_the_order_of_the_models_inputs():
    z, a = keras.Input((3,), name="z"), keras.Input((2,), name="a")
    model = keras.Model({"z": z, "a": a}, layers.Concatenate()([z, a]))
    inputs = ModelInputs(read_graph(model))
    assert [t.name for t in model.inputs] == ["a", "z"]
    given = inputs.structured(inputs.read([np.ones((5, 2)), np.ones((5, 3))]))
    assert {k: v.shape for k, v in given.items()} == {"z": (5, 3), "a": (5, 2)}
    with pytest.raises(InputError, match="by name"):
        inputs.read([np.ones((5, 3)), np.ones((5, 2))])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"z": Z, "aa": A}, "Did you mean 'aa'"),
        ([Z, A[:3]], "as many images.*'z'.*'a'"),
        ([Z, A[:, :3]], r"'a' must have the shape .*4, 4, 1.*\(10, 3, 4, 1\)"),
        ([(Z, A, Y)], "2 input"),
        (tf.data.Dataset.from_tensor_slices((Z, Y)).batch(4), r"'a' must have"),
        ("images", "Received: str"),
        (3, "Received: int"),
        ([[Z, A, Y, Y]], "list of 4"),
    ],
)
def test_what_does_not_fit_is_refused(data, message):
    inputs = ModelInputs(read_graph(two_inputs()))
    with pytest.raises(InputError, match=message):
        list(input_batches(inputs, data))


def one_input(batch=None):
    i = keras.Input(batch_shape=(batch, 3), name="x")
    return ModelInputs(read_graph(keras.Model(i, layers.Dense(2)(i))))


X = np.arange(30.0, dtype="float32").reshape(10, 3)


@pytest.mark.parametrize(
    "data",
    [X, tf.constant(X), {"x": X}, [X], (X,), iter([X]), [(X, Y)], [{"x": X}]],
    ids=lambda data: type(data).__name__,
)
def test_one_input(data):
    found = list(batches_of(one_input(), data, batch_size=4, largest=4))
    assert [len(arrays[0]) for arrays, _ in found] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([a[0] for a, _ in found]), X)


def test_batches_of_a_data_set_stay_as_they_are():
    found = list(input_batches(one_input(), [X, X[:3]]))
    assert [len(arrays[0]) for arrays in found] == [10, 3]


def test_a_missing_last_axis_of_one_is_added_as_keras_does():
    i = keras.Input((1,), name="x")
    inputs = ModelInputs(read_graph(keras.Model(i, layers.Dense(1)(i))))
    assert inputs.read(np.arange(5.0))[0].shape == (5, 1)


@pytest.mark.parametrize("data", [X, [X], [X[:3], X[3:]], iter([(X, Y)])])
def test_models_for_one_image_at_once(data):
    found = list(input_batches(one_input(batch=1), data))
    assert [arrays[0].shape for arrays in found] == [(1, 3)] * 10
    np.testing.assert_array_equal(np.concatenate([a[0] for a in found]), X)


def test_models_for_four_images_at_once_drop_the_rest():
    found = list(batches_of(one_input(batch=4), X, Y))
    assert [labels.tolist() for _, labels in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]


LABELS = {"class": Y, "box": np.ones((N, 4))}


@pytest.mark.parametrize("labels", [LABELS, (Y, LABELS["box"]), [Y, LABELS["box"]]])
@pytest.mark.parametrize("arrays", [True, False])
def test_labels_of_several_outputs(labels, arrays):
    i = keras.Input((3,), name="x")
    model = keras.Model(i, [layers.Dense(2)(i), layers.Dense(4)(i)])
    inputs = ModelInputs(read_graph(model))
    data = X if arrays else [(X[:6], keras.tree.map_structure(lambda v: v[:6], labels))]
    given = labels if arrays else None
    (_, first), *_ = batches_of(inputs, data, given, batch_size=6)
    assert type(first) is type(labels)
    leaves = keras.tree.flatten(first)
    assert sorted(v.shape for v in leaves) == [(6,), (6, 4)]


def test_labels_of_one_of_two_outputs_keep_its_name():
    i = keras.Input((3,), name="x")
    model = keras.Model(i, {"a": layers.Dense(2)(i), "b": layers.Dense(4)(i)})
    ((_, found),) = batches_of(
        ModelInputs(read_graph(model)), X, {"b": np.ones((N, 4))}
    )
    assert list(found) == ["b"] and found["b"].shape == (N, 4)


@pytest.mark.parametrize("labels", [Y, list(range(N)), [Y], {"y": Y}, tf.constant(Y)])
def test_labels_of_one_output_are_one_array(labels):
    ((_, found),) = batches_of(one_input(), X, labels)
    np.testing.assert_array_equal(found, Y)


def test_labels_must_match_the_images_and_go_with_arrays():
    with pytest.raises(InputError, match="4 labels, 10 images"):
        list(batches_of(one_input(), X, np.zeros(4)))
    with pytest.raises(InputError, match="yields its own"):
        list(batches_of(one_input(), iter([X]), Y))


def test_labels_of_any_kind_do_not_matter_where_none_are_wanted():
    ragged = tf.ragged.constant([[1], [2, 3]] * 5)
    data = tf.data.Dataset.from_tensor_slices((X, ragged)).batch(5)
    assert len(list(input_batches(one_input(), data))) == 2


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return X


@pytest.mark.parametrize(
    "data",
    [
        lambda: tf.data.Dataset.from_tensors(X).repeat(),
        lambda: itertools.repeat((X, Y)),
        Endless,
    ],
)
def test_endless_data_end(data, monkeypatch):
    monkeypatch.setattr(module, "MOST_IMAGES", 25)
    with pytest.warns(UserWarning, match="first 30 images"):
        assert len(list(input_batches(one_input(), data()))) == 3
    assert len(list(input_batches(one_input(), data(), 7))) == 7


def eight_bits(model):
    bits = dict.fromkeys(searchable_names(model), (8, 8))
    return gmpq.quantize_model(model, gmpq.BitwidthPolicy(model.name, bits))


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize("form", ["dict", "tf.data of dicts", "PyDataset", "generator"])
@pytest.mark.parametrize("kind", ["list", "dict"])
def test_calibration_and_statistics_take_inputs_by_name(kind, form):
    """`a` reaches 9, `z` 1: exchanged, their steps would be off by that (2^3)."""
    keras.utils.set_random_seed(0)
    model = two_inputs(kind)
    norm = layers.BatchNormalization(name="norm")
    z = next(t for t in model.inputs if t.name == "z")
    normed = norm(layers.Conv2D(3, 1, name="conv", use_bias=False)(z))
    flat = layers.Flatten()(normed)
    model = keras.Model(
        model._inputs_struct, layers.Concatenate()([flat, model.output])
    )
    student = eight_bits(model)
    gmpq.calibrate(student, FORMS[form]())
    for name, values in (("left", Z), ("right", A)):
        step = student.get_layer(name).input_quantizer.step()  # a power of two
        assert abs(np.log2(step * 255 / values.max())) < 1.1
    gmpq.snap_biases(student, FORMS[form]())
    kernel = np.asarray(model.get_layer("conv").kernel)
    wanted = (Z[..., None] * kernel.reshape(1, 1, 1, 1, 3)).reshape(-1, 3)
    found = student.get_layer("norm")
    np.testing.assert_allclose(found.moving_variance, wanted.var(axis=0), rtol=0.05)


@pytest.mark.parametrize(
    "data",
    [
        X,
        {"x": X},
        [X],
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(4),
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat(),
        Pairs(X, Y),
        Pairs({"x": X}, Y),
    ],
)
def test_the_first_images_are_as_many_whatever_holds_them(data):
    i = keras.Input((3,), name="x")
    model = keras.Model(i, layers.Dense(2)(i))
    found = np.concatenate(first_images(model, data, 7))
    np.testing.assert_array_equal(found, X[:7])


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_first_images_of_two_inputs_calibrate(kind):
    model = two_inputs(kind)
    data = by_name() if kind == "dict" else [Z, A]
    for source in (data, Pairs(data), listed(lambda p: {"z": Z[p], "a": A[p]})):
        first = first_images(model, source, 6)
        assert sum(len(keras.tree.flatten(b)[0]) for b in first) == 6
        gmpq.calibrate(eight_bits(model), first)


def test_first_images_do_not_use_up_an_iterator():
    i = keras.Input((3,), name="x")
    with pytest.raises(CalibrationError, match="used up"):
        first_images(keras.Model(i, layers.Dense(2)(i)), iter([X]))


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((None, 8, 8, 3), 512),
        ((None, 128, 128, 1), 64),  # 8 channels of it: 2^19 bytes
        ((None, 64, 128, 1), 128),
        ((None, 512, 512, 1), 64),
        ((7, 8, 8, 3), 7),
    ],
)
def test_batches_of_inference_hold_32_mebibytes_or_64_to_512_images(shape, wanted):
    inputs = keras.Input(batch_shape=shape)
    model = keras.Model(inputs, keras.layers.Conv2D(8, 3, padding="same")(inputs))
    assert inference_batch(read_graph(model)) == wanted
