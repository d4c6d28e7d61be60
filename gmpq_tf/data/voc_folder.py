"""Folders of images with PASCAL VOC annotations, one XML file per image."""

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.folder import IMAGE_SUFFIXES, files_by_stem, folder_root
from gmpq_tf.data.object_files import check_shown, files_raw, object_decoder
from gmpq_tf.data.objects import (
    Objects,
    check_size,
    read_size,
    relative_boxes,
)
from gmpq_tf.data.spec import DatasetSpec, Raw
from gmpq_tf.data.xml_tree import Element, read_xml
from gmpq_tf.spelling import suggest

CLASSES_FILE = "classes.txt"
# Split -> its names in the VOC development kit and in other programs.
_SPELLINGS = {
    "train": ("train", "trainval"),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}


def load_voc_folder(config: DataConfig, spec: DatasetSpec) -> Raw:
    """Loads images with XML annotations.

    The folder has either JPEGImages, Annotations and ImageSets/Main, as the VOC
    development kit, or images and XML files side by side, as LabelImg writes them,
    possibly in folders `train` and `valid` or `test`. Without a test split, random 20 %
    become it. Classes are read from classes.txt, one per line; without that file they
    are those of the training images in alphabetical order.

    Raises:
        DataError: The folder, an annotation or an image cannot be used; it is named.
    """
    root = folder_root(config, "voc_folder")
    decode = object_decoder(config.image_size or spec.image_size, config.channels)
    parts = _parts(root)
    objects = {
        split: {str(image): read_objects(xml, image) for image, xml in pairs.items()}
        for split, pairs in parts.items()
    }
    check_shown(objects["train"])
    class_names = _class_names(root, objects["train"])
    for split, images in objects.items():
        _check_known(parts[split], images, class_names)
    return files_raw(objects, class_names, decode)


def is_voc_folder(root: Path) -> bool:
    """Whether a folder holds annotations as `load_voc_folder` reads them."""
    places = [root, *(root / n for names in _SPELLINGS.values() for n in names)]
    if (root / "Annotations").is_dir():
        return True
    return any(_image_stems(f) & {p.stem for p in f.glob("[!.]*.xml")} for f in places)


def read_objects(path: Path, image: Path) -> Objects:
    """Reads the objects of an image from its annotation.

    Corners in the file count pixels from 1 and are inclusive: a box from 1 to the width
    spans the whole image.

    Args:
        path: the XML file; the file name that it mentions is ignored.
        image: the image file.

    Raises:
        DataError: the file is not a VOC annotation, or a box does not fit the image.
    """
    tree = read_xml(path)
    if tree.tag != "annotation":
        raise DataError(
            "An annotation must be the element <annotation>. "
            f"Received: {path} with <{tree.tag}>. Write it as PASCAL VOC, as LabelImg "
            "does."
        )
    height, width = read_size(image, str(path))
    size = tree.child("size")
    if size is not None:
        said = (_number(path, size, "height", 0), _number(path, size, "width", 0))
        check_size(str(path), said, (height, width))
    found = tree.children("object")
    corners = [_corners(path, each, number) for number, each in enumerate(found, 1)]
    boxes = relative_boxes(str(path), corners, height, width)
    names = tuple(_name(path, each) for each in found)
    return Objects(boxes, names, tuple(_is_difficult(path, each) for each in found))


def _corners(path: Path, element: Element, number: int) -> tuple[float, ...]:
    box = element.child("bndbox")
    if box is None:
        raise DataError(
            "Every object must have a box <bndbox>. "
            f"Received: {path}, object {number}, without one. Draw it, or remove the "
            "object."
        )
    names = ("ymin", "xmin", "ymax", "xmax")
    top, left, bottom, right = (_number(path, box, name) for name in names)
    if bottom <= top or right <= left:  # at most one pixel: probably a mistake
        return (top, left, min(bottom, top), right)
    return (top - 1, left - 1, bottom, right)


def _number(
    path: Path, element: Element, name: str, default: float | None = None
) -> float:
    child = element.child(name)
    text = None if child is None else child.text.strip()
    if not text and default is not None:
        return default
    try:
        return float(text or "")
    except ValueError as error:
        raise DataError(
            f"<{element.tag}> must hold a number <{name}>. "
            f"Received: {path} with {name}={text!r:.60}. Write the annotation again."
        ) from error


def _name(path: Path, element: Element) -> str:
    child = element.child("name")
    name = "" if child is None else " ".join(child.text.split())
    if not name:
        raise DataError(
            "Every object must have a class <name>. "
            f"Received: {path} with an object without one. Name it, or remove it."
        )
    return name


def _is_difficult(path: Path, element: Element) -> bool:
    child = element.child("difficult")
    text = "" if child is None else child.text.strip()
    if text not in ("", "0", "1"):
        raise DataError(
            "<difficult> must be 0 or 1. "
            f"Received: {path} with difficult={text!r:.60}. Write one of the two."
        )
    return text == "1"


def _parts(root: Path) -> dict[str, dict[Path, Path]]:
    """Returns split -> image -> annotation; "train" is always present."""
    if (root / "Annotations").is_dir():
        return _as_test(_of_kit(root))
    folders = {
        split: [root / name for name in names if (root / name).is_dir()]
        for split, names in _SPELLINGS.items()
    }
    if folders["train"]:
        return _as_test({s: _side_by_side(f[0]) for s, f in folders.items() if f})
    return {"train": _side_by_side(root)}


def _as_test(parts: dict[str, dict[Path, Path]]) -> dict[str, dict[Path, Path]]:
    """Uses the validation split as the test split if there is none."""
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return parts


def _of_kit(root: Path) -> dict[str, dict[Path, Path]]:
    lists = root / "ImageSets" / "Main"
    found = {
        split: next((p for n in names if (p := lists / f"{n}.txt").is_file()), None)
        for split, names in _SPELLINGS.items()
    }
    if found["train"] is None:
        if lists.is_dir() and any(found.values()):
            raise DataError(
                "A data set with lists of images needs one of those to train on. "
                f"Received: {lists} without train.txt or trainval.txt. Write it, one "
                "name a line."
            )
        files = sorted((root / "Annotations").glob("[!.]*.xml"))
        if not files:
            raise _nothing(root / "Annotations", "XML files")
        return {"train": _paired(root, [path.stem for path in files], files[0])}
    return {
        split: _paired(root, _listed(path), path)
        for split, path in found.items()
        if path is not None
    }


def _listed(path: Path) -> list[str]:
    """Returns the non-empty lines of a list of images or classes."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "A list of images must be a text in UTF-8. "
            f"Received: {path} ({str(error)[:100]}). Write one name a line."
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise _nothing(path, "names")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            "A list must hold each name once. "
            f"Received: {path} with {twice[0]!r} twice. Remove one."
        )
    return names


def _paired(root: Path, names: list[str], source: Path) -> dict[Path, Path]:
    """Returns image -> annotation for names, which must not contain a path."""
    images = files_by_stem(root / "JPEGImages", IMAGE_SUFFIXES)
    pairs = {}
    for name in names:
        if "/" in name or "\\" in name or name in (".", "..") or "\0" in name:
            raise DataError(
                "A list must hold names of images without folder and suffix. "
                f"Received: {source} with {name!r:.100}. Write such as 000001."
            )
        annotation = root / "Annotations" / f"{name}.xml"
        if not annotation.is_file():
            raise DataError(
                "Every image needs its annotation. "
                f"Received: {source} with {name!r}, but no {annotation}. Write the "
                "annotation (without objects, if it shows none), or remove the name."
            )
        if name not in images:
            raise DataError(
                "Every annotation needs its image. "
                f"Received: {annotation}, but no {root / 'JPEGImages' / name} with a "
                f"suffix of {', '.join(sorted(IMAGE_SUFFIXES))}. Add the image, or "
                f"remove the name from {source}."
            )
        pairs[images[name]] = annotation
    return pairs


def _image_stems(folder: Path) -> set[str]:
    found = folder.iterdir() if folder.is_dir() else []
    return {p.stem for p in found if p.suffix.lower() in IMAGE_SUFFIXES}


def _side_by_side(folder: Path) -> dict[Path, Path]:
    images = files_by_stem(folder, IMAGE_SUFFIXES)
    annotations = sorted(folder.glob("[!.]*.xml"))
    if not annotations:
        raise _nothing(folder, "XML files")
    for path in annotations:
        if path.stem not in images:
            raise DataError(
                "Every annotation needs its image. "
                f"Received: {path}, beside which there is none of that name. Add the "
                "image, or remove the annotation."
            )
    if alone := sorted(set(images) - {path.stem for path in annotations}):
        warnings.warn(
            "Images are read that have an annotation beside them. "
            f"Received: {len(alone)} without one in {folder}, which are left out, "
            f"{alone[0]!r} the first. Annotate them, without objects where they show "
            "none.",
            stacklevel=2,
        )
    return {images[path.stem]: path for path in annotations}


def _class_names(root: Path, train: Mapping[str, Objects]) -> tuple[str, ...]:
    path = root / CLASSES_FILE
    if not path.is_file():
        return tuple(sorted({name for each in train.values() for name in each.names}))
    return tuple(_listed(path))


def _check_known(
    pairs: Mapping[Path, Path],
    images: Mapping[str, Objects],
    class_names: tuple[str, ...],
) -> None:
    for annotation, each in zip(pairs.values(), images.values(), strict=True):
        for name in each.names:
            if name not in class_names:
                raise DataError(
                    f"Every object must be of a class in {CLASSES_FILE} or, without "
                    "that file, of one that a training image shows. "
                    f"Received: {annotation} with {name!r}. "
                    f"{suggest(name, class_names)} Rename it, or add the class."
                )


def _nothing(place: Path, what: str) -> DataError:
    return DataError(
        f"A data set with boxes must have {what}. Received: {place} without. Point to "
        "the folder that holds JPEGImages, Annotations and ImageSets, or images and "
        "their XML files."
    )
