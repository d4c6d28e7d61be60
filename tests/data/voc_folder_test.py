"""VOC folders: what is read, in which order, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.data import DataConfig, DataError, load_dataset
from gmpq_tf.data.object_files import samples
from gmpq_tf.data.objects import MAX_OBJECTS
from gmpq_tf.data.splits import Share
from tests.data.detection_sets import SET, picture, voc_kit, xml


def load(root, **options):
    options = {"image_size": 16, "batch_size": 2} | options
    return load_dataset(DataConfig(str(root), **options))


def expected(name, class_names=("cat", "dog")):
    """Boxes by the rule of the development kit: pixels from 1, both ends inside."""
    (height, width), objects = SET[name]
    boxes = [
        [(y1 - 1) / height, (x1 - 1) / width, y2 / height, x2 / width]
        for _, x1, y1, x2, y2, _ in objects
    ]
    labels = [class_names.index(o[0]) for o in objects]
    return np.array(boxes).reshape(-1, 4), labels, [bool(o[5]) for o in objects]


def assert_holds(split, names, class_names=("cat", "dog")):
    found = list(samples(split))
    assert len(found) == len(names)
    for sample, name in zip(found, names, strict=True):
        boxes, labels, difficult = expected(name, class_names)
        np.testing.assert_allclose(sample["boxes"], boxes, atol=1e-6)
        assert sample["labels"].tolist() == labels
        assert sample["difficult"].tolist() == difficult
        assert sample["image"].shape == (*SET[name][0], 3)
        kinds = [sample[k].dtype for k in ("image", "boxes", "labels", "difficult")]
        assert kinds == ["uint8", "float32", "int32", "bool"]


def test_a_kit_is_read_as_it_is_listed(tmp_path):
    data = load(voc_kit(tmp_path))
    assert data.holds == "boxes" and data.class_names == ("cat", "dog")
    assert data.sizes == {"train": 4, "validation": 1, "test": 1}
    assert data.config.augment == "ssd"
    for split, names in (("train", "abcd"), ("validation", "e"), ("test", "f")):
        assert_holds(data.splits[split], names)


def test_batches_hold_padded_objects_and_scaled_images(tmp_path):
    data = load(voc_kit(tmp_path), image_size=(16, 24), augment="none")
    ((images, labels),) = list(data.test())
    assert images.shape == (1, 16, 24, 3) and float(tf.reduce_max(images)) <= 1
    assert labels["boxes"].shape == (1, 2, 4)
    assert labels["classes"].numpy().tolist() == [[1, -1]]
    np.testing.assert_allclose(labels["boxes"][0, 0], [0.25, 0.25, 0.75, 0.75])
    assert not labels["boxes"][0, 1].numpy().any()
    assert labels["difficult"].dtype == tf.bool
    assert data.input_shape == (16, 24, 3)
    ((images, labels),) = list(data.calibration(2))
    assert images.shape == (2, 16, 24, 3)


def test_images_are_stretched_not_cropped(tmp_path):
    """The four quarters of a wide image are those of the square."""
    root = voc_kit(tmp_path)
    quarters = np.zeros((32, 64, 3), "uint8")
    quarters[:16, 32:], quarters[16:, :32] = 80, 160
    from PIL import Image

    Image.fromarray(quarters).save(root / "JPEGImages" / "f.png")
    path = root / "Annotations" / "f.xml"
    path.write_text(xml((32, 64), [("dog", 33, 1, 64, 16, 0)]))
    ((images, labels),) = list(load(root, scaling="0..255").test())
    np.testing.assert_allclose(labels["boxes"][0, 0], [0, 0.5, 0.5, 1])
    assert images[0, 2, 13, 0] == 80 and images[0, 13, 2, 0] == 160


@pytest.mark.slow
def test_an_epoch_depends_on_seed_and_number_only(tmp_path):
    root = voc_kit(tmp_path)

    def epochs(start, count, seed=0, **options):
        batches = load(root, seed=seed).train(start, count, **options)
        return [[images, *labels.values()] for images, labels in batches]

    def same(one, other):
        pairs = zip(one, other, strict=True)
        return all(
            np.array_equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True)
        )

    whole = epochs(0, 2)
    assert len(whole) == 4
    assert same(whole[2:], epochs(1, 1))
    assert not same(whole[2:], whole[:2])
    assert not same(whole[:2], epochs(0, 1, seed=1))
    halves = [epochs(0, 2, share=Share(index, 2)) for index in (0, 1)]
    joined = [
        [tf.concat(parts, 0) for parts in zip(*pair, strict=True)]
        for pair in zip(*halves, strict=True)
    ]
    assert same(whole, joined)


def test_without_lists_everything_is_read_and_a_fifth_held_out(tmp_path):
    data = load(voc_kit(tmp_path, lists={}), validation_size=1)
    assert data.sizes == {"train": 4, "validation": 1, "test": 1}
    assert load(tmp_path).identity("test") == data.identity("test")


def test_trainval_alone_and_a_validation_list_as_test(tmp_path):
    data = load(voc_kit(tmp_path, {"trainval": "abcd", "test": "ef"}))
    assert data.sizes == {"train": 4, "validation": 0, "test": 2}
    data = load(
        voc_kit(tmp_path / "b", {"train": "abcd", "val": "ef"}), validation_size=1
    )
    assert data.sizes == {"train": 3, "validation": 1, "test": 2}


def test_images_and_annotations_side_by_side_with_and_without_splits(tmp_path):
    for split, names in (("train", "abcd"), ("valid", "ef")):
        for name in names:
            size, objects = SET[name]
            picture(tmp_path / split / f"{name}.png", size)
            (tmp_path / split / f"{name}.xml").write_text(xml(size, objects))
    data = load(tmp_path, validation_size=1)
    assert data.holds == "boxes"
    assert data.sizes == {"train": 3, "validation": 1, "test": 2}
    assert_holds(data.splits["test"], "ef")
    picture(tmp_path / "train" / "alone.png", (8, 8))
    with pytest.warns(UserWarning, match=r"1 without one in .*'alone\.png'|alone"):
        data = load(tmp_path / "train", validation_size=1)
    assert data.sizes == {"train": 2, "validation": 1, "test": 1}


def test_classes_stand_in_their_file(tmp_path):
    (voc_kit(tmp_path) / "classes.txt").write_text("dog\nbird\ncat\n")
    with pytest.warns(UserWarning, match=r"shows an object of bird: .* 1 of 3 classes"):
        data = load(tmp_path)
    assert data.class_names == ("dog", "bird", "cat")
    assert_holds(data.splits["train"], "abcd", data.class_names)
    (tmp_path / "classes.txt").write_text("dog\ncats\n")
    with pytest.raises(DataError, match=r"a\.xml with 'cat'\. Did you mean 'cats'"):
        load(tmp_path)


def test_a_class_that_no_training_image_shows_is_refused(tmp_path):
    voc_kit(tmp_path)
    text = xml(SET["f"][0], [("horse", 1, 1, 5, 5, 0)])
    (tmp_path / "Annotations" / "f.xml").write_text(text)
    with pytest.raises(DataError, match=r"f\.xml with 'horse'"):
        load(tmp_path)


def test_the_identity_changes_with_a_box(tmp_path):
    first = load(voc_kit(tmp_path))
    path = tmp_path / "Annotations" / "b.xml"
    path.write_text(path.read_text().replace("<xmin>5<", "<xmin>4<"))
    second = load(tmp_path)
    assert first.identity("train") != second.identity("train")
    assert first.identity("test") == second.identity("test")


LAUGHS = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
GOOD = xml((30, 30), [("cat", 5, 6, 7, 28, 0)])
HOSTILE = {
    "truncated": (GOOD[:-20], "annotation must be a whole XML file"),
    "empty": ("", "whole XML file"),
    "no XML": ("\x00\x01\x02 not XML", "whole XML file"),
    "laughs": (
        f'<!DOCTYPE a [<!ENTITY a0 "ha">{LAUGHS}]>{GOOD.replace("cat", "&a11;")}',
        "without a document type and entities",
    ),
    "file entity": (
        f'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        f"{GOOD.replace('cat', '&x;')}",
        "document type",
    ),
    "parameter entity": (
        f'<!DOCTYPE a [<!ENTITY % p SYSTEM "http://a/b"> %p;]>{GOOD}',
        "document type",
    ),
    "unknown entity": (GOOD.replace("cat", "&cat;"), "whole XML file"),
    "deep": ("<annotation>" + "<a>" * 5000 + "</a>" * 5000 + "</annotation>", "deeper"),
    "other root": ("<html></html>", "<annotation>"),
    "no box": (
        GOOD.replace("bndbox", "polygon"),
        r"b\.xml, object 1, without one\. Draw",
    ),
    "no corner": (GOOD.replace("xmax", "xmay"), "xmax=None"),
    "no number": (GOOD.replace("<xmin>5", "<xmin>five"), "xmin='five'"),
    "not finite": (GOOD.replace("<xmin>5", "<xmin>nan"), "finite"),
    "infinite": (GOOD.replace("<xmax>7", "<xmax>inf"), "finite"),
    "huge number": (GOOD.replace("<xmax>7", "<xmax>1e300"), "inside its image"),
    "swapped": (GOOD.replace("<xmin>5", "<xmin>9"), "corners are swapped"),
    "empty box": (GOOD.replace("<xmin>5", "<xmin>7"), r"empty, or its corners"),
    "negative": (GOOD.replace("<xmin>5", "<xmin>-3"), "inside its image"),
    "from 0": (GOOD.replace("<xmin>5", "<xmin>0"), "inside its image"),
    "beyond": (GOOD.replace("<ymax>28", "<ymax>31"), "rows 5 to 31, .* of 30 x 30"),
    "no name": (GOOD.replace("cat", " "), "class <name>"),
    "difficult": (GOOD.replace("<difficult>0", "<difficult>yes"), "difficult='yes'"),
    "other size": (xml((60, 60), [("cat", 5, 6, 7, 28, 0)]), "60 x 60.* of 30 x 30"),
    "no size": (GOOD.replace("<width>30", "<width>wide"), "width='wide'"),
    "endless": (GOOD.replace("<width>30", "<width>1e999"), "inf x 30 .* of 30 x 30"),
    "nowhere": (GOOD.replace("<width>30", "<width>nan"), "nan x 30 .* of 30 x 30"),
    "many": (xml((30, 30), [("cat", 1, 1, 9, 9, 0)] * (MAX_OBJECTS + 1)), "1001"),
    "million": (GOOD.replace("</annotation>", "<object/>" * 120_000), "elements"),
    "long": (GOOD + "\n" * 10_000_000, "more than 10000000 bytes"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_annotations_are_refused_by_name(tmp_path, kind):
    text, match = HOSTILE[kind]
    path = voc_kit(tmp_path) / "Annotations" / "b.xml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"(?s){match}") as raised:
        load(tmp_path)
    assert str(path) in str(raised.value) and "Received:" in str(raised.value)
    assert len(str(raised.value)) < 900


def test_size_and_difficult_may_be_missing_and_corners_floats(tmp_path):
    path = voc_kit(tmp_path) / "Annotations" / "b.xml"
    text = GOOD.replace("<difficult>0</difficult>", "").replace("<xmin>5", "<xmin>5.5")
    path.write_text(text.replace("<width>30", "<width>0"), encoding="utf-8-sig")
    sample = list(samples(load(tmp_path).splits["train"]))[1]
    np.testing.assert_allclose(sample["boxes"][0, 1], 4.5 / 30, atol=1e-6)
    assert sample["difficult"].tolist() == [False]


def test_lists_and_folders_that_cannot_be_used(tmp_path):
    root = voc_kit(tmp_path)
    listed = root / "ImageSets" / "Main" / "train.txt"
    for text, match in (
        ("a\n../../secret\n", "without folder and suffix"),
        ("a\nzz\n", r"'zz', but no .*zz\.xml"),
        ("a\nb\na\n", "'a' twice"),
        ("\n", "names"),
        ("a\nf\n", "one split only"),
        ("c\n", "show an object"),
    ):
        listed.write_text(text)
        with pytest.raises(DataError, match=match):
            load(root)
    listed.write_text("a\nb\n")
    picture(root / "JPEGImages" / "b.jpg", (30, 30))
    with pytest.raises(DataError, match=r"without their suffix.*b\.jpg and b\.png"):
        load(root)
    (root / "JPEGImages" / "b.jpg").unlink()
    (root / "JPEGImages" / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b\.xml, whose image .*b\.png"):
        load(root)
    (root / "JPEGImages" / "b.png").unlink()
    with pytest.raises(DataError, match=r"b\.xml, but no "):
        load(root)
    listed.unlink()
    with pytest.raises(DataError, match=r"without train\.txt or trainval"):
        load(root)
    with pytest.raises(DataError, match="voc_folder"):
        load_dataset(DataConfig("voc_folder", str(tmp_path / "no"), image_size=8))
    with pytest.raises(DataError, match=r"XML files\. Received: .*empty"):
        (tmp_path / "empty").mkdir()
        load_dataset(DataConfig("voc_folder", str(tmp_path / "empty"), image_size=8))


def test_boxes_and_classes_are_augmented_by_their_own(tmp_path):
    voc_kit(tmp_path)
    for name in ("flip_crop", "shift", "random_crop"):
        with pytest.raises(DataError, match=r"'none', 'flip', 'ssd' for .* boxes"):
            load(tmp_path, augment=name)
    with pytest.raises(DataError, match=r"for images with classes.*augment='ssd'"):
        load_dataset(DataConfig("digits", augment="ssd"))
    with pytest.raises(DataError, match="image_size=None"):
        load(tmp_path, image_size=None)
    assert load(tmp_path, augment="flip").sizes["train"] == 4


def test_images_alone_and_grey_ones(tmp_path):
    voc_kit(tmp_path)
    data = load(tmp_path, labels="none")
    assert not data.labelled
    assert next(iter(data.test())).shape == (1, 16, 16, 3)
    grey = load(tmp_path, channels=1)
    images, labels = next(iter(grey.train(epochs=1)))
    assert images.shape == (2, 16, 16, 1) and labels["boxes"].shape == (2, 2, 4)


def test_the_size_is_that_which_the_model_reads(tmp_path):
    data = load_dataset(DataConfig(str(voc_kit(tmp_path))), reads=(24, 32, 3))
    assert data.input_shape == (24, 32, 3)


def test_bccd_and_the_animals_are_read_whole(shared_dir):
    counts = {"bccd": (205, 87, 72, 2804), "voc_animals": (1607, 200, 500, 2500)}
    for name, (train, validation, test, objects) in counts.items():
        folder = shared_dir / "data" / "detection" / name
        if not folder.is_dir():
            pytest.skip(f"{name} is not here")
        data = load(folder, image_size=32)
        assert list(data.sizes.values()) == [train, validation, test]
        assert data.class_names == tuple((folder / "classes.txt").read_text().split())
        assert int((data.splits["train"].labels["classes"] >= 0).sum()) == objects
