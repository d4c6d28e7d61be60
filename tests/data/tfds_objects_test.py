"""Sets of TFDS with boxes, against what TFDS itself reads of them."""

import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.data import DATASETS, DataConfig, DataError, load_dataset, tfds_objects
from gmpq_tf.data.object_files import samples
from gmpq_tf.data.spec import DatasetSpec
from gmpq_tf.data.tfds_objects import load_tfds_objects


@pytest.fixture
def voc_dir(shared_dir):
    pytest.importorskip("tensorflow_datasets")
    folder = shared_dir / "data" / "tfds"
    if not (folder / "voc" / "2012").is_dir():
        pytest.skip("the sample of VOC 2012 is not here")
    return str(folder)


@pytest.fixture(scope="module")
def boxed_tfds(tmp_path_factory):
    """A prepared set of 12 images; image k has k % 4 objects and the value 10 k."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "objects": tfds.features.Sequence(
                {
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
                    "is_crowd": tf.bool,
                }
            ),
        }
    )

    def example(number):
        count = number % 4
        boxes = [
            tfds.features.BBox(ymin=0.1, xmin=0.2, ymax=0.5, xmax=0.3 + 0.1 * n)
            for n in range(count)
        ]
        return {
            "image": np.full((20 + number, 30, 3), 10 * number, np.uint8),
            "objects": [
                {"bbox": box, "label": n, "is_crowd": n == 2}
                for n, box in enumerate(boxes)
            ],
        }

    folder = str(tmp_path_factory.mktemp("tfds"))
    tfds.dataset_builders.AdhocBuilder(
        name="boxed_set",
        version="1.0.0",
        features=features,
        split_datasets={"train": [(n, example(n)) for n in range(12)]},
        data_dir=folder,
    ).download_and_prepare()
    return folder


def boxed(folder, **options):
    spec = DatasetSpec("boxed_set", load_tfds_objects, holds="boxes")
    return load_tfds_objects(DataConfig("boxed_set", folder, **options), spec)


def test_objects_of_any_set_are_read(boxed_tfds):
    raw = boxed(boxed_tfds, image_size=(16, 24))
    assert raw.class_names == ("a", "b", "c") and raw.image_shape == (16, 24, 3)
    assert {name: split.size for name, split in raw.splits.items()} == {
        "train": 10,
        "test": 2,
    }
    found = [s for split in raw.splits.values() for s in samples(split)]
    numbers = [int(sample["image"][0, 0, 0]) // 10 for sample in found]
    assert sorted(numbers) == list(range(12))
    for number, sample in zip(numbers, found, strict=True):
        assert sample["labels"].tolist() == list(range(number % 4))
        assert sample["difficult"].tolist() == [n == 2 for n in range(number % 4)]
        if number % 4:
            np.testing.assert_allclose(
                sample["boxes"][0], [0.1, 0.2, 0.5, 0.3], atol=1e-6
            )


def test_too_many_objects_are_said_to_be(boxed_tfds, monkeypatch):
    monkeypatch.setattr(tfds_objects, "MOST", 2)
    monkeypatch.setattr(tfds_objects.ObjectLabels.__init__, "__defaults__", (2,))
    raw = boxed(boxed_tfds, image_size=8)
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 2 objects"):
        list(samples(raw.splits["train"]))


def test_voc_is_what_tfds_reads(voc_dir):
    import tensorflow_datasets as tfds

    data = load_dataset(DataConfig("voc/2012", voc_dir, image_size=32, batch_size=4))
    assert data.holds == "boxes" and data.num_classes == 20
    assert data.sizes == {"train": 54, "validation": 6, "test": 40}
    wanted = tfds.load("voc/2012", split="validation", data_dir=voc_dir)
    pairs = zip(samples(data.splits["test"]), tfds.as_numpy(wanted), strict=True)
    for have, want in pairs:
        np.testing.assert_allclose(have["boxes"], want["objects"]["bbox"])
        np.testing.assert_array_equal(have["labels"], want["objects"]["label"])
        np.testing.assert_array_equal(
            have["difficult"], want["objects"]["is_difficult"]
        )
        assert have["image"].shape == want["image"].shape
    first, again = (
        [labels["boxes"].numpy() for _, labels in data.train(1, 1).take(2)]
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)


def test_years_are_joined_evenly(voc_dir, monkeypatch):
    joined = {
        "train": (("voc/2012", "train"), ("voc/2012", "validation")),
        "test": (("voc/2012", "validation"),),
    }
    monkeypatch.setattr(tfds_objects, "VOC0712", joined)
    config = DataConfig("voc0712", voc_dir, image_size=16, validation_size=0)
    data = load_dataset(config)
    assert data.sizes == {"train": 100, "validation": 0, "test": 40}

    def keys(split):
        return [
            s["boxes"].tobytes() + s["image"].tobytes()[:99] for s in samples(split)
        ]

    alone = load_dataset(
        DataConfig("voc/2012", voc_dir, image_size=16, validation_size=0)
    )
    train, test = keys(alone.splits["train"]), keys(alone.splits["test"])
    both = keys(data.splits["train"])
    assert sorted(both) == sorted(train + test)
    from_test = [key in set(test) for key in both]
    assert 18 <= sum(from_test[:50]) <= 22
    assert data.identity("train") != alone.identity("train")
    kept, held = data.splits["train"].hold_out(10, 0)
    assert sorted(keys(kept) + keys(held)) == sorted(both)


def test_voc0712_is_the_usual_union():
    """5,011 images of 2007 and 11,540 of 2012; 4,952 to test."""
    assert [n for n, _ in tfds_objects.VOC0712["train"]] == ["voc/2007"] * 2 + [
        "voc/2012"
    ] * 2
    assert tfds_objects.VOC0712["test"] == (("voc/2007", "test"),)
    assert DATASETS["voc0712"].image_size == 300


def test_a_set_that_is_not_here_and_one_without_boxes(tmp_path, tiny_tfds):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(DataError, match=r"voc/2007.*no prepared copy"):
        load_dataset(DataConfig("voc0712", str(tmp_path)))
    spec = DatasetSpec("tiny_set", load_tfds_objects, holds="boxes")
    with pytest.raises(DataError, match=r"'objects'.*Received: dataset='tiny_set'"):
        load_tfds_objects(DataConfig("tiny_set", tiny_tfds, image_size=8), spec)
