"""Sets of TensorFlow Datasets whose images have objects: boxes with a class each."""

import dataclasses
from typing import Any

import tensorflow as tf

from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.object_files import object_decoder
from gmpq_tf.data.objects import PADDING
from gmpq_tf.data.spec import TEST_FRACTION, DatasetSpec, Raw
from gmpq_tf.data.splits import TEST_SEED
from gmpq_tf.data.stream import StreamSplit
from gmpq_tf.data.tfds_sets import prepared_builder

MOST = 128  # objects of an image: VOC has up to 56, COCO 93
# Split -> the TFDS sets and their splits that together form it.
VOC0712 = {
    "train": (
        ("voc/2007", "train"),
        ("voc/2007", "validation"),
        ("voc/2012", "train"),
        ("voc/2012", "validation"),
    ),
    "test": (("voc/2007", "test"),),
}
# Sets whose test images have no public boxes.
_HIDDEN_TEST = ("voc/2009", "voc/2012", "coco")
# Features that mark an object as ignored in an evaluation.
_DIFFICULT = ("is_difficult", "is_crowd")


@dataclasses.dataclass(frozen=True)
class ObjectLabels:
    """Reads the objects of an image of a TFDS set, padded to the same number.

    Args:
        difficult: the feature that marks objects to ignore; None: there is none.
        most: M, the largest number of objects in an image.
    """

    difficult: str | None
    most: int = MOST

    @property
    def features(self) -> dict[str, Any]:
        """Features of an example that TFDS has to decode, as its `PartialDecoding`."""
        names = ["bbox", "label", *([self.difficult] if self.difficult else [])]
        return {"objects": dict.fromkeys(names, True)}

    def of(self, example: Any) -> dict[str, tf.Tensor]:
        """Returns "boxes" [M, 4], "classes" int32 [M] and "difficult" bool [M]."""
        objects = example["objects"]
        classes = tf.cast(objects["label"], tf.int32)
        count = tf.shape(classes)[0]
        tf.debugging.assert_less_equal(
            count, self.most, f"An image has more than {self.most} objects."
        )
        if self.difficult:
            difficult = tf.cast(objects[self.difficult], tf.bool)
        else:
            difficult = tf.zeros([count], tf.bool)
        room = [[0, self.most - count]]
        padded = {
            "boxes": tf.pad(objects["bbox"], [*room, [0, 0]]),
            "classes": tf.pad(classes, room, constant_values=PADDING),
            "difficult": tf.pad(difficult, room),
        }
        return {
            name: tf.ensure_shape(value, [self.most, *value.shape[1:]])
            for name, value in padded.items()
        }


def load_tfds_objects(config: DataConfig, spec: DatasetSpec) -> Raw:
    """Loads a set of TFDS with the features `image` and `objects`.

    `voc0712` is the usual set for detectors: it is trained on the training and
    validation images of VOC 2007 and 2012 and tested on the test images of 2007. Other
    sets that have no test split with boxes are tested on their validation split; one
    with only a training split on random 20 % of it.

    Raises:
        DataError: TFDS does not know the set, it is not on disk and cannot be fetched,
            or has no objects.
    """
    decode = object_decoder(config.image_size or spec.image_size, config.channels)
    joined = VOC0712 if spec.name == "voc0712" else None
    names = {name for part in (joined or {}).values() for name, _ in part}
    builders = {n: prepared_builder(config, n) for n in sorted(names or {spec.name})}
    features = [_objects_of(builder) for builder in builders.values()]
    class_names = tuple(features[0]["label"].names)
    difficult = next((name for name in _DIFFICULT if name in features[0]), None)
    labels = ObjectLabels(difficult)

    def split(parts: Any) -> StreamSplit:
        first, *others = (
            StreamSplit(
                builders[name],
                part,
                ((0, builders[name].info.splits[part].num_examples),),
                decode,
                labels=labels,
            )
            for name, part in parts
        )
        return dataclasses.replace(first, others=tuple(others))

    given = joined or _own_splits(spec.name, builders[next(iter(builders))])
    splits = {name: split(parts) for name, parts in given.items()}
    if set(splits) == {"train"}:
        count = round(TEST_FRACTION * splits["train"].size)
        splits["train"], splits["test"] = splits["train"].hold_out(count, TEST_SEED)
    assert decode.size is not None
    return Raw(dict(splits), (*decode.size, decode.channels), class_names)


def _own_splits(name: str, builder: Any) -> dict[str, list[tuple[str, str]]]:
    known = set(builder.info.splits)
    full = f"{builder.name}/{getattr(builder.builder_config, 'name', '')}"
    if builder.name in _HIDDEN_TEST or full in _HIDDEN_TEST:
        known.discard("test")
    names = {n: n for n in ("train", "validation", "test") if n in known}
    if "test" not in names and "validation" in names:
        names["test"] = names.pop("validation")
    return {split: [(name, own)] for split, own in names.items()}


def _objects_of(builder: Any) -> Any:
    """Returns the features of a set's objects, or raises if it has none."""
    features = builder.info.features
    inner = getattr(dict(features.items()).get("objects"), "feature", None)
    if "image" not in features or inner is None or not {"bbox", "label"} <= set(inner):
        raise DataError(
            "A TFDS set with boxes must have the features 'image' and 'objects' with "
            f"'bbox' and 'label'. Received: dataset={builder.name!r} with "
            f"{', '.join(features)}. Choose such a set, or voc_folder or coco_json."
        )
    return inner
