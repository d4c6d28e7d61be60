"""What a two-stage detector is trained for, measured by and distilled with."""

import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.detection.boxes import encode, to_centers
from gmpq_tf.models import build_model
from gmpq_tf.search import search_policy
from gmpq_tf.search.distill import Distiller
from gmpq_tf.search.judge import Judge
from gmpq_tf.task import Binary, Numbers, TaskError, outputs_of
from gmpq_tf.task.region_task import region_gap
from gmpq_tf.task.tasks import task_of
from tests.task.tasks_test import CLASSES, labels_of


@pytest.fixture(scope="module")
def detector():
    keras.utils.set_random_seed(0)
    name = "faster_rcnn_resnet18"
    return build_model(name, (64, 64, 3), len(CLASSES), alpha=0.125, regions=6)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((2, 64, 64, 3), np.float32)


def rows_of(labels, moved=0.0):
    """Rows that say where the objects are, from regions beside them."""
    regions = np.clip(labels["boxes"] + 0.02, 0, 1)
    offsets = encode(labels["boxes"] + moved, to_centers(regions), (0.1, 0.2))
    scores = 20 * np.eye(4)[labels["classes"] + 1]
    return np.concatenate([regions, scores, np.tile(offsets, 4)], -1).astype("f4")


def test_a_detector_of_regions_has_a_task(detector):
    task = task_of(detector)
    assert (task.holds, task.headline) == ("boxes", "map_07")
    said = {o.name: o for o in outputs_of(detector)}
    assert said["objects"].kind == Numbers() == said["rpn_boxes"].kind
    assert said["rpn_scores"].kind == Binary(0.0)
    assert {o.known_from for o in said.values()} == {"graph"}
    assert list(said)[task.deciding] == "rpn_scores"
    task.check(CLASSES)
    with pytest.raises(TaskError, match="of 3 classes for 2"):
        task.check(CLASSES[:2])
    other = keras.Model(detector.input, detector.output["objects"], name="cut")
    with pytest.raises(TaskError, match="must have the outputs rpn_scores"):
        task_of(other)


def test_the_meter_knows_a_perfect_detector(detector):
    labels = labels_of()
    meter = task_of(detector).meter(CLASSES)
    meter.add({"objects": rows_of(labels)}, labels)
    assert meter.report()["map_07"] == meter.report()["map_area"] == 1.0
    blind = task_of(detector).meter(CLASSES)
    blind.add({"objects": rows_of(labels, moved=0.4)}, labels)
    assert blind.report()["map_07"] < 0.5


@pytest.mark.slow
def test_fit_learns_and_draws_the_same_again(detector, images):
    task, labels = task_of(detector), labels_of()
    targets, start = task.targets(labels), detector.get_weights()
    ends = []
    for _ in range(2):
        detector.set_weights(start)
        keras.utils.set_random_seed(1)
        detector.compile(keras.optimizers.Adam(0.003), loss=task.loss())
        logs = detector.fit(images, targets, epochs=6, batch_size=2, verbose=0)
        assert logs.history["loss"][-1] < 0.7 * logs.history["loss"][0]
        ends.append(logs.history["loss"])
    assert ends[0] == ends[1]
    detector.set_weights(start)


def test_a_gap_is_none_to_itself_whatever_the_order_of_regions(detector, images):
    outputs = [np.asarray(each) for each in detector.predict_on_batch(images).values()]
    names = list(detector.predict_on_batch(images))
    found = [outputs[names.index(n)] for n in ("objects", "rpn_boxes", "rpn_scores")]
    labels = labels_of()
    found[0] = rows_of(labels)
    turned = [found[0][:, ::-1], *found[1:]]
    moved = [rows_of(labels, moved=0.05), *found[1:]]
    np.testing.assert_allclose(region_gap(found, turned, 1.0), 0, atol=1e-5)
    assert (region_gap(found, moved, 1.0).numpy() > 0.1).all()
    judge = Judge(detector, [turned[i] for i in range(3)])
    np.testing.assert_allclose(judge.divergence(turned, found), 0, atol=1e-5)


@pytest.fixture(scope="module")
def student(detector, images):
    policy = gmpq.BitwidthPolicy.uniform(detector, 4, 4)
    student = gmpq.quantize_model(detector, policy)
    gmpq.calibrate(student, images)
    return student


def test_between_the_files_numbers_are_float(student):
    names = [layer.name for layer in student.layers]
    # Corners and the rows of regions are no numbers of a file.
    assert "regions_quantizer" not in names and "objects_quantizer" not in names
    assert {"roi_align_quantizer", "roi_scores_quantizer"} <= set(names)
    assert student.get_layer("roi_align_quantizer").signed is False


@pytest.mark.slow
def test_a_student_is_distilled(detector, student, images):
    task, labels = task_of(student), labels_of()
    distiller = Distiller(student, detector, weight=0.5)
    distiller.compile("adam", loss=task.loss())
    targets = task.targets(labels)
    logs = distiller.fit(images, targets, batch_size=2, verbose=0)
    assert np.isfinite(logs.history["loss"]).all()


@pytest.mark.slow
def test_bits_are_searched_without_labels(detector, images):
    found = search_policy(detector, images, strategy="loss_delta", budget="W4A4")
    assert found.policy["roi_scores"].weight_bits == 8
    assert {bits.weight_bits for _, bits in found.policy.items()} > {8}
