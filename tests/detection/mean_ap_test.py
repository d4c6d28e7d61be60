"""Average precision: by hand, by a second plain program, and by pycocotools."""

import numpy as np
import pytest

from gmpq_tf.detection.default_boxes import BoxError
from gmpq_tf.detection.mean_ap import MeanAP

LEFT, RIGHT, BELOW = (0.1, 0.1, 0.4, 0.4), (0.1, 0.6, 0.4, 0.9), (0.6, 0.1, 0.9, 0.4)


def truth(*boxes, classes=None, difficult=None):
    found = {
        "boxes": np.array(boxes, "float32").reshape(-1, 4),
        "classes": np.array(classes or [0] * len(boxes), "int32"),
    }
    if difficult:
        found["difficult"] = np.array(difficult)
    return found


def report_of(*images, names=("a",), **options):
    """Images as (truth, [(box, class, score), ...])."""
    metric = MeanAP(names, **options)
    for own, found in images:
        boxes, classes, scores = zip(*found, strict=True) if found else ([], [], [])
        metric.add(own, boxes, classes, scores)
    return metric.report()


def test_perfect_detections_are_one():
    found = [(LEFT, 0, 0.9), (RIGHT, 1, 0.8)]
    report = report_of((truth(LEFT, RIGHT, classes=[0, 1]), found), names=("a", "b"))
    assert report.map_07 == report.map_area == 1.0


def test_one_of_two_objects():
    report = report_of((truth(LEFT, RIGHT), [(LEFT, 0, 0.9)]))
    assert report.map_07 == pytest.approx(6 / 11)
    assert report.map_area == pytest.approx(0.5)


def test_three_of_ten_reach_a_recall_of_three_tenths():
    """As a float, three times 0.1 is more than 3 / 10."""
    boxes = [(0.1 * i, 0.0, 0.1 * i + 0.09, 0.5) for i in range(10)]
    report = report_of((truth(*boxes), [(box, 0, 0.5) for box in boxes[:3]]))
    assert report.map_07 == pytest.approx(4 / 11)


def test_a_wrong_detection_between_two_right_ones():
    found = [(LEFT, 0, 0.9), (BELOW, 0, 0.8), (RIGHT, 0, 0.7)]
    row = report_of((truth(LEFT, RIGHT), found)).classes["a"]
    np.testing.assert_allclose(row.precision, [1, 1 / 2, 2 / 3])
    np.testing.assert_allclose(row.recall, [1 / 2, 1 / 2, 1])
    assert row.ap_area == pytest.approx((1 + 2 / 3) / 2)
    assert row.ap_07 == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert (row.objects, row.detections) == (2, 3)


def test_an_object_is_found_once():
    found = [(LEFT, 0, 0.9), (LEFT, 0, 0.8)]
    row = report_of((truth(LEFT), found)).classes["a"]
    np.testing.assert_allclose(row.precision, [1, 1 / 2])


def test_a_detection_takes_the_object_it_overlaps_most_even_if_that_is_found():
    """VOC's rule: another free object that it overlaps less is not looked for."""
    near = (0.1, 0.12, 0.4, 0.42)
    row = report_of((truth(LEFT, near), [(LEFT, 0, 0.9), (LEFT, 0, 0.8)])).classes["a"]
    np.testing.assert_allclose(row.precision, [1, 1 / 2])


def test_difficult_objects_do_not_count():
    plain = report_of((truth(LEFT), [(LEFT, 0, 0.9)]))
    own = truth(LEFT, RIGHT, difficult=[False, True])
    twice = [(LEFT, 0, 0.9), (RIGHT, 0, 0.95), (RIGHT, 0, 0.6)]
    for found in ([twice[0]], twice):
        report = report_of((own, found))
        assert report.map_07 == plain.map_07 == 1.0
        assert report.classes["a"].objects == 1
        assert report.classes["a"].detections == 1


def test_only_classes_with_objects_are_averaged():
    own = truth(LEFT, RIGHT, classes=[0, 2], difficult=[False, True])
    found = [(LEFT, 0, 0.9), (BELOW, 1, 0.9), (RIGHT, 2, 0.9)]
    report = report_of((own, found), names=("a", "b", "c"))
    assert report.map_area == 1.0
    assert report.classes["b"].ap_07 is None and report.classes["c"].ap_area is None
    assert report.classes["b"].detections == 1
    empty = report_of((truth(), []))
    assert empty.map_07 is None and empty.images == 1


def test_overlap_of_exactly_half_is_enough():
    wide = (0.0, 0.0, 0.5, 1.0)
    half = (0.0, 0.0, 0.5, 0.5)
    assert report_of((truth(wide), [(half, 0, 0.9)])).map_area == 1.0
    assert report_of((truth(wide), [(half, 0, 0.9)]), least_iou=0.51).map_area == 0.0


def random_images(seed, count=12, classes=3, ties=False, apart=False):
    """Truth with difficult objects and detections near and far from it.

    Args:
        seed: of everything.
        count: images.
        classes: how many.
        ties: whether scores are often equal.
        apart: whether no two objects overlap, so that rules of matching agree.
    """
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        objects = random.integers(0, 6)
        start = random.uniform(0, 0.6, (objects, 2))
        if apart:
            places = random.permutation(9)[:objects]
            start = np.stack([places // 3, places % 3], 1) / 3
        boxes = np.concatenate(
            [start, start + random.uniform(0.1, 0.33 if apart else 0.4, start.shape)], 1
        )
        own = truth(
            *boxes,
            classes=random.integers(0, classes, objects).tolist(),
            difficult=(random.random(objects) < 0.2).tolist(),
        )
        found = []
        for box, number in zip(own["boxes"], own["classes"], strict=True):
            for _ in range(random.integers(0, 3)):
                score = random.random()
                score = round(score, 1) if ties else score
                found.append((box + random.normal(0, 0.03, 4), int(number), score))
        for _ in range(random.integers(0, 4)):
            low = random.uniform(0, 0.5, 2)
            box = [*low, *(low + 0.3)]
            found.append((box, int(random.integers(classes)), random.random()))
        images.append((own, found))
    return images


def plain_ap(images, number, area):
    """The devkit's program: all detections in turn, one box after another."""
    free = [
        {"box": b, "hard": h, "image": i, "taken": False}
        for i, (own, _) in enumerate(images)
        for b, c, h in zip(
            own["boxes"],
            own["classes"],
            own.get("difficult", [False] * len(own["boxes"])),
            strict=True,
        )
        if c == number
    ]
    objects = sum(not o["hard"] for o in free)
    if not objects:
        return None
    found = [
        (s, i, b) for i, (_, f) in enumerate(images) for b, c, s in f if c == number
    ]
    hits = wrong = 0
    recall, precision = [0.0], [0.0]
    for _, image, box in sorted(found, key=lambda row: -row[0]):
        best, most = None, -1.0
        for other in free:
            if other["image"] == image and plain_iou(box, other["box"]) > most:
                best, most = other, plain_iou(box, other["box"])
        if most >= 0.5 and best["hard"]:
            continue
        if most >= 0.5 and not best["taken"]:
            best["taken"], hits = True, hits + 1
        else:
            wrong += 1
        recall.append(hits / objects)
        precision.append(hits / (hits + wrong))
    if not area:
        points = [t / 10 for t in range(11)]
        pairs = list(zip(recall, precision, strict=True))
        tops = [[p for r, p in pairs if r >= t - 1e-12] or [0.0] for t in points]
        return sum(map(max, tops)) / 11
    total, last = 0.0, 0.0
    for i, r in enumerate(recall):
        total += (r - last) * max(precision[i:])
        last = r
    return total


def plain_iou(a, b):
    high = min(a[2], b[2]) - max(a[0], b[0])
    wide = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(high, 0) * max(wide, 0)
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return float(shared / (both - shared))


@pytest.mark.parametrize("seed", range(8))
def test_a_second_program_finds_the_same(seed):
    images, names = random_images(seed), ("a", "b", "c")
    report = report_of(*images, names=names)
    for number, name in enumerate(names):
        row = report.classes[name]
        for have, area in ((row.ap_07, False), (row.ap_area, True)):
            want = plain_ap(images, number, area)
            assert have == (None if want is None else pytest.approx(want, abs=1e-9))


def test_the_order_of_images_does_not_matter_even_with_equal_scores():
    images, names = random_images(3, 30, ties=True), ("a", "b", "c")
    want = report_of(*images, names=names)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(images))
        have = report_of(*[images[i] for i in order], names=names)
        assert have.map_07 == pytest.approx(want.map_07, abs=1e-12)
        assert have.map_area == pytest.approx(want.map_area, abs=1e-12)


def test_padding_changes_nothing_in_batches():
    images, names = random_images(5), ("a", "b", "c")

    class Padded:
        def of_image(self, index):
            found = [*images[index][1], ((0.1, 0.1, 0.5, 0.5), -1, 1.0)]
            return tuple(np.array(part) for part in zip(*found, strict=True))

    most = max(len(own["boxes"]) for own, _ in images)
    fill = {"boxes": 0.0, "classes": -1, "difficult": False}
    labels = {
        name: np.stack(
            [
                np.concatenate(
                    [
                        own.get(name, np.zeros(0, bool)),
                        np.full(
                            (most - len(own["boxes"]), *own["boxes"].shape[1:])
                            if name == "boxes"
                            else most - len(own["boxes"]),
                            value,
                        ),
                    ]
                )
                for own, _ in images
            ]
        )
        for name, value in fill.items()
    }
    metric = MeanAP(names)
    metric.add_batch(labels, Padded())
    want = report_of(*images, names=names)
    assert metric.report().map_07 == pytest.approx(want.map_07, abs=1e-6)
    assert metric.report().map_area == pytest.approx(want.map_area, abs=1e-6)


def test_what_does_not_fit_is_refused():
    metric = MeanAP(["a", "b"])
    with pytest.raises(BoxError, match=r"from 0 to 1\. Received: class=2"):
        metric.add(truth(LEFT), [LEFT], [2], [0.5])
    with pytest.raises(BoxError, match="truth must be from 0 to 1"):
        metric.add(truth(LEFT, classes=[5]), [], [], [])
    with pytest.raises(BoxError, match="one class and one score for each box"):
        metric.add(truth(LEFT), [LEFT, RIGHT], [0], [0.5])
    with pytest.raises(BoxError, match="finite"):
        metric.add(truth(LEFT), [LEFT], [0], [np.nan])
    assert metric.report().images == 0
    for names in ([], ["a", "a"]):
        with pytest.raises(BoxError, match="class_names="):
            MeanAP(names)
    for value in (0, 1.5, float("nan")):
        with pytest.raises(BoxError, match="least_iou="):
            MeanAP(["a"], value)


@pytest.mark.parametrize("seed", range(3))
def test_pycocotools_finds_the_same_area(seed):
    """COCO's precision at 101 recalls, so within half a per cent."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    images = [
        ({**own, "difficult": np.zeros(len(own["classes"]), bool)}, found)
        for own, found in random_images(seed, 120, 2, apart=True)
    ]
    real = coco.COCO()
    real.dataset = {
        "images": [{"id": i, "width": 1, "height": 1} for i in range(len(images))],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
        "annotations": [
            {
                "id": n + 1,
                "image_id": i,
                "category_id": int(c),
                "iscrowd": 0,
                "bbox": xywh(b),
                "area": float(np.prod(xywh(b)[2:])),
            }
            for n, (i, b, c) in enumerate(
                (i, b, c)
                for i, (own, _) in enumerate(images)
                for b, c in zip(own["boxes"], own["classes"], strict=True)
            )
        ],
    }
    real.createIndex()
    results = real.loadRes(
        [
            {"image_id": i, "category_id": c, "bbox": xywh(b), "score": s}
            for i, (_, found) in enumerate(images)
            for b, c, s in found
        ]
    )
    task = evaluation.COCOeval(real, results, "bbox")
    task.params.iouThrs = np.array([0.5])
    task.params.areaRng, task.params.areaRngLbl = [[0, 1e10]], ["all"]
    task.evaluate()
    task.accumulate()
    precision = task.eval["precision"][0, :, :, 0, -1]  # recalls, classes
    have = report_of(*images, names=("a", "b"))
    assert have.map_area == pytest.approx(precision.mean(), abs=0.005)


def xywh(box):
    low, high = np.asarray(box[:2], float), np.asarray(box[2:], float)
    return [low[1], low[0], high[1] - low[1], high[0] - low[0]]
