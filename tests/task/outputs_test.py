"""What an output says, known from graph, loss, labels or the caller."""

import functools

import keras
import numpy as np
import pytest

from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.task import (
    Binary,
    Classes,
    Numbers,
    TaskError,
    classifier_kind,
    match_labels,
    outputs_of,
)
from gmpq_tf.transform import quantize_model

L, losses = keras.layers, keras.losses
YES, LOGIT, CLASSES, NUMBERS = Binary(0.5), Binary(0.0), Classes(), Numbers()


def flat(*last, units=5):
    x = inputs = keras.Input((6,))
    for layer in (L.Dense(units, name="head"), *last):
        x = layer(x)
    return keras.Model(inputs, x)


def image(*last, channels=3):
    x = inputs = keras.Input((8, 8, 3))
    for layer in (L.Conv2D(channels, 1, name="head"), *last):
        x = layer(x)
    return keras.Model(inputs, x)


def only(model, **options):
    (output,) = outputs_of(model, **options)
    return output.kind, output.known_from


def nested(activation):
    x = keras.Input((6,))
    return keras.Model(x, L.Identity()(flat(L.Activation(activation))(x)))


def ensemble():
    x = keras.Input((6,))
    parts = [L.Dense(4, activation="softmax")(x) for _ in range(2)]
    return keras.Model(x, L.Average()(parts))


def anchors():
    x = keras.Input((8, 8, 3))
    parts = [
        L.Softmax()(L.Reshape((-1, 3))(L.Conv2D(6, 1, strides=n)(x))) for n in (1, 2)
    ]
    return keras.Model(x, L.Concatenate(axis=1)(parts))


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (lambda: flat(L.Activation("softmax")), CLASSES),
        (lambda: flat(L.Softmax()), CLASSES),
        (lambda: flat(L.Dense(3, activation="softmax")), CLASSES),
        (lambda: flat(L.Dense(3, activation=L.Softmax())), CLASSES),
        (lambda: flat(L.Dense(3, activation=keras.ops.softmax)), CLASSES),
        (lambda: flat(keras.ops.softmax), CLASSES),
        (lambda: flat(keras.ops.log_softmax), CLASSES),
        (lambda: flat(L.Softmax(), L.Reshape((1, 1, 5)), L.Flatten()), CLASSES),
        (lambda: flat(L.Softmax(), L.Reshape((5, 1))), Classes(-2)),
        (lambda: nested("softmax"), CLASSES),
        (ensemble, CLASSES),
        (anchors, CLASSES),
        (lambda: flat(L.Dense(1, activation="sigmoid")), YES),
        (lambda: flat(L.Dense(1), keras.ops.sigmoid), YES),
        (lambda: flat(L.Dense(4, activation="sigmoid")), YES),
        (lambda: nested("sigmoid"), YES),
        (lambda: image(L.Softmax()), CLASSES),
        (lambda: image(L.Softmax(axis=1)), Classes(-3)),
        (lambda: image(L.Softmax(axis=-2), L.Permute((3, 1, 2))), Classes(-1)),
        (lambda: image(L.Softmax(), L.Permute((3, 1, 2))), Classes(-3)),
        (lambda: image(L.Softmax(), L.Reshape((64, 3))), CLASSES),
        (lambda: image(L.Softmax(), L.GlobalAveragePooling2D()), CLASSES),
        (lambda: image(L.Activation("sigmoid"), L.UpSampling2D(), channels=1), YES),
    ],
)
def test_the_graph_says_it(model, kind):
    assert only(model()) == (kind, "graph")


@pytest.mark.parametrize(
    ("units", "last", "loss", "kind"),
    [
        (5, "linear", "sparse_categorical_crossentropy", CLASSES),
        (5, "linear", losses.CategoricalCrossentropy(from_logits=True), CLASSES),
        (5, "sigmoid", "sparse_categorical_crossentropy", CLASSES),
        (5, "linear", ["categorical_crossentropy"], CLASSES),
        (1, "linear", losses.BinaryCrossentropy(from_logits=True), LOGIT),
        (4, "linear", losses.BinaryFocalCrossentropy(from_logits=True), LOGIT),
        (1, "linear", "binary_crossentropy", YES),
        (1, "sigmoid", losses.BinaryCrossentropy(), YES),
        (1, "sigmoid", losses.BinaryCrossentropy(from_logits=True), YES),
        (1, "linear", "hinge", LOGIT),
        (1, "linear", "mse", NUMBERS),
        (5, "linear", losses.MeanAbsoluteError(), NUMBERS),
        (4, "sigmoid", losses.Huber(), NUMBERS),
        (4, "sigmoid", losses.mean_squared_error, NUMBERS),
        (1, "linear", losses.binary_crossentropy, YES),
        (
            1,
            "linear",
            functools.partial(losses.binary_crossentropy, from_logits=True),
            LOGIT,
        ),
    ],
)
def test_the_loss_says_it_before_and_after_saving(tmp_path, units, last, loss, kind):
    model = flat(L.Activation(last), units=units)
    model.compile("sgd", loss)
    assert only(model) == (kind, "loss")
    if not isinstance(loss, functools.partial):
        model.save(tmp_path / "m.keras")
        assert only(keras.models.load_model(tmp_path / "m.keras")) == (kind, "loss")


def test_a_softmax_is_of_classes_whatever_the_loss():
    model = flat(L.Softmax())
    model.compile("sgd", "mse")
    assert only(model) == (CLASSES, "graph")


@pytest.mark.parametrize(
    ("units", "last", "labels", "kind"),
    [
        (5, "linear", np.array([0, 4, 2]), CLASSES),
        (5, "linear", np.array([[0], [4], [2]]), CLASSES),
        (5, "sigmoid", np.array([0, 4, 2]), CLASSES),
        (5, "linear", np.eye(5)[[0, 4, 2]], CLASSES),
        (3, "linear", np.array([[1, 1, 0], [0, 0, 0]]), LOGIT),
        (3, "linear", np.array([[0.3, 1, 0], [0, 0, 0]]), NUMBERS),
        (3, "sigmoid", np.array([[0.3, 1, 0], [0, 0, 0]]), NUMBERS),
        (3, "sigmoid", np.array([[1, 1, 0], [0, 0, 0]]), YES),
        (1, "linear", np.array([1, 0, 1]), LOGIT),
        (1, "linear", np.array([[True], [False]]), LOGIT),
        (1, "linear", np.array([1.0, -1.0]), LOGIT),
        (1, "linear", np.array([31, 64, 7]), NUMBERS),
        (1, "linear", np.array([[0.25], [1.0]]), NUMBERS),
        (1, "sigmoid", np.array([0, 1]), YES),
        (1, "sigmoid", np.array([0.5, 0.25]), NUMBERS),
    ],
)
def test_labels_say_it(units, last, labels, kind):
    model = flat(L.Activation(last), units=units)
    assert only(model, labels=labels) == (kind, "labels")


def test_labels_and_loss_together():
    """Box corners from 0 to 1, a classifier trained on squares, an image made anew."""
    model = flat(L.Activation("sigmoid"), units=4)
    model.compile("sgd", "mse")
    assert only(model, labels=np.full((2, 4), 0.3)) == (NUMBERS, "labels")
    assert only(model, labels=np.ones((2, 4))) == (YES, "labels")
    again = image(L.Activation("sigmoid"))
    again.compile("sgd", "binary_crossentropy")
    assert only(again) == (YES, "loss")
    assert only(again, labels=np.full((2, 8, 8, 3), 0.3)) == (NUMBERS, "labels")


@pytest.mark.parametrize("last", ["sigmoid", "linear"])
def test_masks_of_255_are_no_probabilities(last):
    model, masks = image(L.Activation(last), channels=1), np.zeros((2, 8, 8, 1), int)
    if last == "linear":
        model.compile("sgd", losses.BinaryCrossentropy(from_logits=True))
    masks[1, :4] = 255
    with pytest.raises(TaskError, match=r"Received: .*255.* Divide masks"):
        outputs_of(model, labels=masks)
    assert only(model, labels=masks / 255)[0] == (LOGIT if last == "linear" else YES)
    assert only(model, stated="numbers", labels=masks) == (NUMBERS, "stated")
    model.compile("sgd", "mse")
    assert only(model, labels=masks)[0] == NUMBERS


def test_what_nothing_says_is_assumed():
    assert only(flat(units=5)) == (CLASSES, "assumed")
    assert only(flat(units=1)) == (NUMBERS, "assumed")
    assert only(flat(units=6)) == (NUMBERS, "assumed")  # the shape of its input
    assert only(image(L.Activation("sigmoid"))) == (NUMBERS, "assumed")
    bare = flat(L.Reshape(()), units=1)  # [B]
    assert only(bare) == (NUMBERS, "assumed")
    assert only(bare, labels=np.array([1, 0, 1])) == (LOGIT, "labels")
    assert only(bare, loss="mse") == (NUMBERS, "loss")
    (output,) = outputs_of(flat(units=5))
    assert output.compared == "argmax of 5 classes (assumed)"


def two(head=None, as_dict=False):
    x = keras.Input((6,))
    label = L.Dense(3, activation="softmax", name="label")(x)
    box = L.Dense(4, name="box")(x)
    return keras.Model(x, {"b": label, "a": box} if as_dict else [label, box])


@pytest.mark.parametrize("as_dict", [False, True])
def test_each_of_several_outputs(as_dict):
    model = two(as_dict=as_dict)
    names = ("b", "a") if as_dict else ("label", "box")
    stated = dict(zip(names, ("binary", "numbers"), strict=True))
    found = {o.name: o.kind for o in outputs_of(model, stated)}
    assert found == {names[0]: YES, names[1]: NUMBERS}
    assert {o.known_from for o in outputs_of(model, "classes")} == {"stated"}
    values = dict(zip(names, ("sparse_categorical_crossentropy", "mse"), strict=True))
    model.compile("sgd", values if as_dict else [*values.values()])
    found = {o.name: (o.kind, o.known_from) for o in outputs_of(model)}
    assert found == {names[0]: (CLASSES, "graph"), names[1]: (NUMBERS, "loss")}


def test_heads_keep_their_names_in_the_quantized_model():
    model = two()
    student = quantize_model(model, BitwidthPolicy.uniform(model, 8, 8))
    student.compile("sgd", [None, "mse"])
    assert [(o.name, o.kind) for o in outputs_of(student)] == [
        ("label", CLASSES),
        ("box", NUMBERS),
    ]
    labels = match_labels(student, {"box": np.ones((2, 4))})
    assert labels[0] is None
    assert labels[1].shape == (2, 4)


def test_labels_are_matched_by_name_or_order():
    numbers, boxes = np.arange(2), np.ones((2, 4))
    for given in ([numbers, boxes], (numbers, boxes)):
        found = match_labels(two(), given)
        assert [f.shape for f in found] == [(2,), (2, 4)]
    found = match_labels(two(as_dict=True), {"b": numbers, "a": boxes})
    assert [f.shape for f in found] == [(2, 4), (2,)]  # Keras sorts the keys
    found = match_labels(two(as_dict=True), (boxes, numbers))
    assert [f.shape for f in found] == [(2, 4), (2,)]
    for given in (numbers, [numbers], {"head": numbers}, [0, 1]):
        np.testing.assert_array_equal(match_labels(flat(), given)[0], numbers)
    assert match_labels(two(), None) == [None, None]


def test_what_fits_no_output_is_refused():
    with pytest.raises(TaskError, match=r"'boxes'\. Did you mean 'box'\?"):
        outputs_of(two(), {"boxes": "numbers"})
    with pytest.raises(TaskError, match=r"'logits'"):
        outputs_of(two(), "logits")
    with pytest.raises(TaskError, match=r"dict by name"):
        outputs_of(two(as_dict=True), ["classes", "numbers"])
    with pytest.raises(TaskError, match=r"labels of a model with 2 output"):
        match_labels(two(), np.zeros(3))
    with pytest.raises(TaskError, match=r"labels .* dict by name"):
        match_labels(two(as_dict=True), (np.zeros(3), np.zeros(3)))


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (lambda: flat(units=5), CLASSES),
        (lambda: flat(L.Activation("sigmoid")), CLASSES),
        (lambda: flat(units=1), LOGIT),
        (lambda: flat(L.Activation("sigmoid"), units=1), YES),
        (lambda: flat(L.Softmax(), L.Reshape((5,))), CLASSES),
    ],
)
def test_of_class_numbers(model, kind):
    assert classifier_kind(model()) == kind
