"""COCO's average precision: by hand, by pycocotools."""

import contextlib
import io

import numpy as np
import pytest

from gmpq_tf.detection import CocoAP
from tests.detection.mean_ap_test import (
    BELOW,
    LEFT,
    RIGHT,
    random_images,
    truth,
    xywh,
)


def ap_of(*images, names=("a",)):
    metric = CocoAP(names)
    for own, found in images:
        metric.add(own, *(zip(*found, strict=True) if found else ((), (), ())))
    return metric.mean()


def test_perfect_detections_are_one_and_none_are_zero():
    own = truth(LEFT, RIGHT, classes=[0, 1])
    names = ("a", "b")
    assert ap_of((own, [(LEFT, 0, 0.9), (RIGHT, 1, 0.8)]), names=names) == 1.0
    assert ap_of((own, []), names=names) == 0.0
    assert ap_of((truth(), [(LEFT, 0, 0.9)])) is None


def test_an_overlap_counts_up_to_its_own():
    """Sides in the ratio 0.72: right at 0.5, 0.55, 0.6, 0.65 and 0.7 only."""
    wide, part = (0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 0.5, 0.72)
    assert ap_of((truth(wide), [(part, 0, 0.9)])) == pytest.approx(0.5)


def test_one_of_two_objects_reaches_half_of_the_recalls():
    found = ap_of((truth(LEFT, RIGHT), [(LEFT, 0, 0.9), (BELOW, 0, 0.5)]))
    assert found == pytest.approx(51 / 101)


def test_a_taken_object_leaves_the_next_one():
    """Unlike VOC's rule: the second detection takes what is free."""
    near = (0.1, 0.11, 0.4, 0.41)
    assert ap_of((truth(LEFT, near), [(LEFT, 0, 0.9), (LEFT, 0, 0.8)])) > 0.9


def test_difficult_objects_do_not_count_however_often_they_are_found():
    own = truth(LEFT, RIGHT, difficult=[False, True])
    found = [(LEFT, 0, 0.5), (RIGHT, 0, 0.95), (RIGHT, 0, 0.9)]
    assert ap_of((own, found)) == 1.0


def test_the_order_of_images_does_not_matter():
    images, names = random_images(3, 20, ties=True), ("a", "b", "c")
    want = ap_of(*images, names=names)
    assert 0 < want < 1
    assert ap_of(*images[::-1], names=names) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("apart", [True, False])
def test_pycocotools_finds_the_same(apart):
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    images = [
        ({"boxes": own["boxes"], "classes": own["classes"]}, found)
        for own, found in random_images(7, 80, 2, apart=apart)
    ]
    rows = [
        (image, box, int(number))
        for image, (own, _) in enumerate(images)
        for box, number in zip(own["boxes"], own["classes"], strict=True)
    ]
    real = coco.COCO()
    real.dataset = {
        "images": [{"id": i, "width": 1, "height": 1} for i in range(len(images))],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
        "annotations": [
            {
                "id": n,
                "image_id": image,
                "category_id": number,
                "iscrowd": 0,
                "bbox": xywh(box),
                "area": float(np.prod(xywh(box)[2:])),
            }
            for n, (image, box, number) in enumerate(rows, 1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        real.createIndex()
        results = real.loadRes(
            [
                {"image_id": i, "category_id": c, "bbox": xywh(b), "score": s}
                for i, (_, found) in enumerate(images)
                for b, c, s in found
            ]
        )
        task = evaluation.COCOeval(real, results, "bbox")
        task.params.areaRng, task.params.areaRngLbl = [[0, 1e10]], ["all"]
        task.evaluate()
        task.accumulate()
    want = task.eval["precision"][:, :, :, 0, -1].mean()
    assert ap_of(*images, names=("a", "b")) == pytest.approx(want, abs=1e-9)
