"""What classifiers and detectors are trained for, measured by and distilled with."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import gmpq_tf as gmpq
from gmpq_tf.detection import (
    DefaultBoxesLayer,
    default_boxes_of,
    ssd_boxes,
    targets,
)
from gmpq_tf.models import build_model
from gmpq_tf.run.loop import save_model
from gmpq_tf.search.distill import Distiller
from gmpq_tf.search.judge import Judge
from gmpq_tf.task import Classes, Numbers, TaskError, outputs_of
from gmpq_tf.task.targets import Target, Targets
from gmpq_tf.task.tasks import task_of

CLASSES = ("cat", "cow", "dog")


@pytest.fixture(scope="module")
def detector():
    return build_model("ssd_resnet8", (32, 32, 3), len(CLASSES))


def labels_of(images=2, seed=0):
    """Labels as data sets have them: two or three objects an image, one padded."""
    random = np.random.default_rng(seed)
    # One of each class, each in its quarter of the image: none hides another.
    low = np.array([(0, 0), (0, 0.5), (0.5, 0)]) + random.uniform(
        0, 0.1, (images, 3, 2)
    )
    boxes = np.concatenate([low, low + random.uniform(0.3, 0.4, (images, 3, 2))], -1)
    classes = np.array([random.permutation(len(CLASSES)) for _ in range(images)])
    classes[0, 2] = -1
    return {
        "boxes": boxes.astype("float32"),
        "classes": classes.astype("int32"),
        "difficult": np.zeros((images, 3), bool),
    }


def perfect(detector, labels):
    made = targets(labels, default_boxes_of(detector))
    scores = 20 * np.eye(len(CLASSES) + 1)[np.asarray(made["scores"])]
    return {"boxes": np.asarray(made["boxes"])[..., :4], "scores": scores}


def test_a_detector_says_numbers_and_classes(detector):
    kinds = {o.name: (o.kind, o.known_from) for o in outputs_of(detector)}
    assert kinds["boxes"] == (Numbers(), "graph")
    assert kinds["scores"] == (Classes(), "graph")
    trained = outputs_of(detector, loss=task_of(detector).loss())
    known = {o.name: o.known_from for o in trained}
    assert known == {"boxes": "graph", "scores": "loss"}
    student = gmpq.quantize_model(detector, gmpq.BitwidthPolicy.uniform(detector, 4, 4))
    assert default_boxes_of(student) == default_boxes_of(detector)
    assert task_of(student).holds == "boxes"


def test_the_meter_knows_a_perfect_detector(detector):
    labels = labels_of()
    task, outputs = task_of(detector), perfect(detector, labels)
    meter = task.meter(CLASSES)
    meter.add(outputs, labels)
    assert meter.report() == {"map_07": 1.0, "map_area": 1.0, "map_coco": 1.0}
    blind = task.meter(CLASSES)
    blind.add({**outputs, "scores": 20 * np.eye(4)[np.zeros((2, 1520), int)]}, labels)
    assert blind.report()["map_07"] == 0.0
    missed = task.meter(CLASSES)
    first = np.where(np.arange(2)[:, None, None] == 0, outputs["boxes"], 9.0)
    missed.add({**outputs, "boxes": first}, labels)
    assert 0 < missed.report()["map_area"] < 1
    # Without a word NaN would find nothing, which is an average precision of 0.
    for name, value in (("boxes", np.nan), ("scores", np.nan), ("boxes", np.inf)):
        broken = {key: np.array(values) for key, values in outputs.items()}
        broken[name][1, 7] = value
        said = f"infinity in output '{name}' of the model, for 1 of 2 images. Check"
        with pytest.raises(TaskError, match=said):
            task.meter(CLASSES).add(broken, labels)
    objects = task.found(outputs)
    scores = np.where(np.arange(2)[:, None] == 0, np.nan, objects.scores)
    with pytest.raises(TaskError, match="'scores' of the model, for 1 of 2"):
        task.meter(CLASSES).add(dataclasses.replace(objects, scores=scores), labels)


def test_losses_of_what_is_wanted_are_least(detector):
    labels = labels_of()
    task, outputs = task_of(detector), perfect(detector, labels)
    wanted, losses = task.encode(labels), task_of(detector).loss()
    values = {k: float(losses[k](wanted[k], outputs[k])) for k in losses}
    assert values["boxes"] == 0 and 0 <= values["scores"] < 1e-6
    other = perfect(detector, labels_of(seed=1))
    assert all(float(losses[k](wanted[k], other[k])) > 0.5 for k in losses)


def test_scores_may_be_probabilities():
    options = {"classifier_activation": "softmax"}
    model = build_model("ssd_resnet8", (32, 32, 3), 3, **options)
    logits = build_model("ssd_resnet8", (32, 32, 3), 3)
    logits.set_weights(model.get_weights())
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    wanted = task_of(model).encode(labels_of())
    for name in ("boxes", "scores"):
        found = [
            float(task_of(m).loss()[name](wanted[name], m(images)[name]))
            for m in (model, logits)
        ]
        assert found[0] == pytest.approx(found[1], rel=1e-3)
    reports = []
    for m in (model, logits):
        meter = task_of(m).meter(())
        meter.add(m(images), labels_of())
        reports.append(meter.report())
    assert reports[0] == pytest.approx(reports[1], abs=1e-3)


def test_what_is_no_task_is_refused(detector):
    inputs = keras.Input((8,))
    two = keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(3)(inputs)])
    with pytest.raises(TaskError, match="2 outputs, no default boxes"):
        task_of(two)
    outputs = detector(detector.inputs[0])
    with pytest.raises(TaskError, match="outputs"):
        task_of(keras.Model(detector.inputs[0], outputs["boxes"]))
    sigmoids = layers.Activation("sigmoid")(outputs["scores"])
    own = keras.Model(detector.inputs[0], {**outputs, "scores": sigmoids})
    with pytest.raises(TaskError, match="end in sigmoid"):
        task_of(own)
    with pytest.raises(TaskError, match="of 3 classes for 2"):
        task_of(detector).check(("cat", "dog"))
    task_of(detector).check(CLASSES)


@pytest.mark.parametrize(("ending", "name"), [(None, ""), ("sigmoid", "mask")])
def test_a_mask_of_yes_and_no_has_a_mean_iou(ending, name):
    """Also where its array is called by the name of the only output."""
    inputs = keras.Input((4, 6, 3))
    outputs = layers.Conv2D(1, 1, activation=ending, name="mask")(inputs)
    model = keras.Model(inputs, outputs)
    random = np.random.default_rng(0)
    images = random.normal(size=(5, 4, 6, 3)).astype("float32")
    masks = random.integers(0, 2, (5, 4, 6))
    task = task_of(model, Targets({name: Target((4, 6), True, 0, 1)}))
    batches = [
        (images[part], {name: masks[part]} if name else masks[part])
        for part in (slice(3), slice(3, 5))
    ]
    found = task.measure(model, batches, ())
    said = model.predict(images, verbose=0)[..., 0] > (0.5 if ending else 0.0)
    shares = [
        np.sum((said == k) & (masks == k)) / np.sum((said == k) | (masks == k))
        for k in (0, 1)
    ]
    assert found["mean_iou"] == pytest.approx(np.mean(shares))


def test_a_file_keeps_names_and_structure(detector, tmp_path):
    save_model(detector, tmp_path / "m.keras")
    loaded = gmpq.load_model(tmp_path / "m.keras")
    images = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    first, again = detector(images), loaded(images)
    assert set(again) == {"boxes", "scores"}
    np.testing.assert_allclose(again["boxes"], first["boxes"], atol=1e-5)
    inputs = {"b": keras.Input((3,), name="b"), "a": keras.Input((3,), name="a")}
    both = layers.Dense(2)(layers.Subtract()([inputs["a"], inputs["b"]]))
    model = keras.Model(inputs, [both, layers.ReLU()(both)])
    save_model(model, tmp_path / "n.keras")
    values = {name: np.random.rand(2, 3) for name in "ab"}
    pairs = zip(
        gmpq.load_model(tmp_path / "n.keras")(values), model(values), strict=True
    )
    for one, other in pairs:
        np.testing.assert_allclose(one, other)


def trained_loss(student, teacher, losses, x, y, weight, temperature=2.0):
    distiller = Distiller(student, teacher, weight, temperature)
    distiller.compile(keras.optimizers.SGD(0.0), losses, jit_compile=False)
    return distiller.fit(x, y, batch_size=len(x), verbose=0).history["loss"][0]


@pytest.mark.slow
def test_a_detector_is_guided_where_its_teacher_sees_objects():
    teacher, student = (build_model("ssd_resnet8", (32, 32, 3), 3) for _ in range(2))
    for norm in (*teacher.layers, *student.layers):
        if isinstance(norm, layers.BatchNormalization):
            norm.trainable = False  # inference statistics, as the teacher has
    last = teacher.get_layer("scores0")
    last.bias.assign(np.where(np.arange(16) % 4 == 0, 3.0, 0.0))  # mostly background
    x = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    y = task_of(student).encode(labels_of())
    found = trained_loss(student, teacher, task_of(student).loss(), x, y, 0.25)
    t, s = (keras.tree.map_structure(np.asarray, m(x)) for m in (teacher, student))
    task = sum(float(task_of(student).loss()[k](y[k], s[k])) for k in s)
    shares = tf.nn.softmax(t["scores"]).numpy()
    seen = shares[..., 0] < 0.9
    assert 0.05 < seen.mean() < 0.95
    p, q = (np.log(tf.nn.softmax(z["scores"] / 2.0)) for z in (t, s))
    kl = (np.exp(p) * (p - q)).sum(-1)[seen]
    off = np.abs(t["boxes"] - s["boxes"])[seen]
    smooth = np.where(off < 1, off**2 / 2, off - 0.5).sum(-1)
    gap = (4 * kl + smooth).mean()
    assert found == pytest.approx(0.75 * task + 0.25 * gap, rel=2e-3)


def test_a_detector_of_other_outputs_is_guided_by_what_each_says():
    def build():
        rows = inputs = keras.Input((6, 8))
        offsets = layers.Dense(4, name="offsets")(rows)
        offsets = DefaultBoxesLayer(ssd_boxes([(1, 1)]), name="boxes")(offsets)
        scores = layers.Dense(2, activation="sigmoid", name="scores")(rows)
        points = layers.Dense(10, name="points")(rows)
        outputs = {"boxes": offsets, "points": points, "scores": scores}
        return keras.Model(inputs, outputs)

    teacher, student = build(), build()
    x = np.random.default_rng(0).normal(size=(3, 6, 8)).astype("float32")
    y = keras.tree.map_structure(np.asarray, student(x))
    losses = {"boxes": "mse", "points": "mse", "scores": "binary_crossentropy"}
    found = trained_loss(student, teacher, losses, x, y, 1.0)
    t, s = (keras.tree.map_structure(np.asarray, m(x)) for m in (teacher, student))
    gap = sum(np.mean((t[name] - s[name]) ** 2) for name in ("boxes", "points"))
    odds = [np.log(z["scores"] / (1 - z["scores"])) / 2 for z in (t, s)]
    p, q = (1 / (1 + np.exp(-z)) for z in odds)
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    gap += 4 * kl.sum(-1).mean()
    assert found == pytest.approx(gap, rel=1e-3)
    t, s = (list(z.values()) for z in (t, s))
    assert np.all(np.asarray(Judge(student, t).divergence(s, t)) > 0)


def test_each_of_several_outputs_is_guided_by_what_it_says():
    def build():
        inputs = keras.Input((6,))
        one = layers.Dense(3, activation="softmax", name="kind")(inputs)
        outputs = {"kind": one, "size": layers.Dense(2, name="size")(inputs)}
        return keras.Model(inputs, outputs)

    teacher, student = build(), build()
    random = np.random.default_rng(0)
    x = random.normal(size=(8, 6)).astype("float32")
    y = {"kind": random.integers(0, 3, 8), "size": random.normal(size=(8, 2))}
    losses = {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    found = trained_loss(student, teacher, losses, x, y, 1.0, 3.0)
    t, s = (keras.tree.map_structure(np.asarray, m(x)) for m in (teacher, student))
    p, q = (np.log(tf.nn.softmax(np.log(z["kind"]) / 3.0)) for z in (t, s))
    gap = 9 * (np.exp(p) * (p - q)).sum(-1).mean()
    gap += np.mean((t["size"] - s["size"]) ** 2)
    assert found == pytest.approx(gap, rel=1e-3)
