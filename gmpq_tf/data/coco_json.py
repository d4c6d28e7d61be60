"""Images with one COCO annotation file per split."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from gmpq_tf.data.config import DataConfig
from gmpq_tf.data.errors import DataError
from gmpq_tf.data.folder import IMAGE_SUFFIXES, expanded, folder_root
from gmpq_tf.data.object_files import files_raw, object_decoder
from gmpq_tf.data.objects import (
    Objects,
    check_size,
    read_size,
    relative_boxes,
)
from gmpq_tf.data.spec import DatasetSpec, Raw
from gmpq_tf.spelling import suggest

MAX_BYTES = 10**9  # COCO's own largest has 450 MB
_SPELLINGS = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
# {} is the name of a split: COCO's own, CVAT's, Roboflow's and plain names.
_COCO_PLACES = (
    "annotations/instances_{}*.json",
    "instances_{}*.json",
    "{}/_annotations.coco.json",
)
_PLACES = (
    *_COCO_PLACES,
    "{}.json",
    "annotations/{}.json",
    "{}/annotations.json",
    "{}/labels.json",
)


def load_coco_json(config: DataConfig, spec: DatasetSpec) -> Raw:
    """Loads images whose objects stand in COCO annotation files.

    `data_dir` is a file, or a folder with one file per split: train.json,
    annotations/instances_train2017.json, train/_annotations.coco.json and the like.
    Images lie beside the file, in `images` or in a folder of the split's name. Without
    a test split, random 20 % become it. Crowds count as difficult.

    Raises:
        DataError: The folder, a file or an image cannot be used; it is named.
    """
    decode = object_decoder(config.image_size or spec.image_size, config.channels)
    root, files = _files(config)
    read = {split: read_coco(path, root, split) for split, path in files.items()}
    class_names, _ = read["train"]
    for split, (names, _) in read.items():
        for name in names:
            if name not in class_names:
                raise DataError(
                    "Every category must be one of the training split's. "
                    f"Received: {files[split]} with {name!r}. "
                    f"{suggest(name, class_names)} Rename it there or in "
                    f"{files['train']}."
                )
    return files_raw(
        {s: images for s, (_, images) in read.items()}, class_names, decode
    )


def is_coco(path: Path) -> bool:
    """Whether a path is a JSON file, or a folder with file names only COCO uses."""
    if path.is_file():
        return path.suffix.lower() == ".json"
    return any(
        next(path.glob(place.format(name)), None)
        for names in _SPELLINGS.values()
        for name in names
        for place in _COCO_PLACES
    )


def read_coco(
    path: Path, root: Path, split: str = ""
) -> tuple[tuple[str, ...], dict[str, Objects]]:
    """The categories of an annotation file, and the objects of its images.

    Args:
        path: the annotation file.
        root: folder in or below which the images lie.
        split: name of the split, for the folder of its images.

    Returns:
        Names of the categories in the order of their numbers; path of an image ->
        its objects.

    Raises:
        DataError: the file is not COCO JSON, or does not fit the images.
    """
    content = _parsed(path)
    tables = {name: _table(path, content, name) for name in ("images", "categories")}
    names = {
        number: _text(path, f"categories, id {number}", row, "name")
        for number, row in sorted(tables["categories"].items(), key=_in_order)
    }
    if not names or len(set(names.values())) < len(names):
        raise _wrong(path, "categories", "one or more, each of another name", names)
    rows: dict[Any, list[Mapping]] = {number: [] for number in tables["images"]}
    for place, row in enumerate(_list(path, content, "annotations")):
        image = row.get("image_id")
        if not isinstance(image, int | str) or image not in rows:
            raise _wrong(path, f"annotations[{place}].image_id", "of an image", image)
        number = row.get("category_id")
        if not isinstance(number, int | str) or number not in names:
            raise _wrong(
                path, f"annotations[{place}].category_id", "of a category", number
            )
        rows[image].append(row)
    folders = _image_folders(path, root, split)
    found: dict[str, Objects] = {}
    for number, row in tables["images"].items():
        where = f"images, id {number}"
        image_path = _image_path(path, where, row, folders)
        if str(image_path) in found:
            raise _wrong(path, f"{where}: file_name", "of one entry only", image_path)
        found[str(image_path)] = _objects(
            path, where, row, image_path, rows[number], names
        )
    if not found:
        raise _wrong(path, "images", "one or more", 0)
    return tuple(names.values()), found


def _objects(
    path: Path,
    where: str,
    row: Mapping,
    image: Path,
    annotations: list[Mapping],
    names: Mapping[Any, str],
) -> Objects:
    height, width = read_size(image, f"{path}, {where}")
    said = [row.get(side, 0) for side in ("height", "width")]
    if not all(isinstance(side, int) and side >= 0 for side in said):
        raise _wrong(path, f"{where}: height and width", "whole numbers", said)
    check_size(f"{path}, {where}", (said[0], said[1]), (height, width))
    corners = []
    for each in annotations:
        box = each.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            shown = f"annotation id {each.get('id')!r}: bbox"
            raise _wrong(path, shown, "four numbers [x, y, width, height]", box)
        left, top, wide, high = (
            float(v) if abs(v) < 1e9 else float("inf") for v in box
        )
        corners.append((top, left, top + high, left + wide))
    boxes = relative_boxes(f"{path}, {image.name}", corners, height, width)
    return Objects(
        boxes,
        tuple(names[each["category_id"]] for each in annotations),
        tuple(each.get("iscrowd", 0) in (1, True) for each in annotations),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parsed(path: Path) -> Mapping:
    try:
        if not path.is_file():  # Reading a pipe would block.
            raise FileNotFoundError("no such file")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text, parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"Annotations must be a whole JSON file of at most {MAX_BYTES} bytes. "
            f"Received: {path} ({str(error)[:100]}). Export it again."
        ) from error
    if not isinstance(content, Mapping):
        raise _wrong(path, "the file", "an object", type(content).__name__)
    return content


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _list(path: Path, content: Mapping, name: str) -> list[Mapping]:
    rows = content.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _wrong(path, f"{name!r}", "a list of objects", type(rows).__name__)
    return rows


def _table(path: Path, content: Mapping, name: str) -> dict[Any, Mapping]:
    """Rows of a list by their ids."""
    table: dict[Any, Mapping] = {}
    for row in _list(path, content, name):
        number = row.get("id")
        if not isinstance(number, int | str) or number in table:
            raise _wrong(path, f"{name!r}: id", "another whole number for each", number)
        table[number] = row
    return table


def _in_order(item: tuple[Any, Mapping]) -> tuple[bool, Any]:
    return isinstance(item[0], str), item[0]


def _text(path: Path, where: str, row: Mapping, name: str) -> str:
    text = row.get(name)
    if not isinstance(text, str) or not text.strip():
        raise _wrong(path, f"{where}: {name}", "a text", text)
    return " ".join(text.split()) if name == "name" else text


def _wrong(path: Path, what: str, rule: str, received: Any) -> DataError:
    return DataError(
        f"A COCO annotation file must have images, annotations and categories. "
        f"Received: {path}, {what} must be {rule}, and is {received!r:.100}. Correct "
        "the file, or export it again."
    )


def _image_path(path: Path, where: str, row: Mapping, folders: list[Path]) -> Path:
    name = _text(path, where, row, "file_name")
    parts = PurePosixPath(name.replace("\\", "/"))
    if (
        parts.is_absolute()
        or ".." in parts.parts
        or ":" in parts.parts[0]
        or "\0" in name
    ):
        rule = "a path below the folder of the images"
        raise _wrong(path, f"{where}: file_name", rule, name)
    if parts.suffix.lower() not in IMAGE_SUFFIXES:
        rule = f"of a suffix of {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise _wrong(path, f"{where}: file_name", rule, name)
    found = next((p for f in folders if (p := f / parts).is_file()), None)
    if found is None:
        raise DataError(
            "Every image that annotations name must be there. "
            f"Received: {path}, {where}: {name!r:.100}, looked for in "
            f"{', '.join(map(str, folders))}. Put the images there, or remove the "
            "entry."
        )
    return found


def _image_folders(path: Path, root: Path, split: str) -> list[Path]:
    """Existing folders that may hold the images, the likeliest first."""
    own = path.stem.removeprefix("instances_")
    names = dict.fromkeys([own, *_SPELLINGS.get(split, ())])
    places = [
        *(folder / name for name in names for folder in (root / "images", root)),
        path.parent / "images",
        root / "images",
        path.parent,
        root,
    ]
    return list(dict.fromkeys(place for place in places if place.is_dir()))


def _files(config: DataConfig) -> tuple[Path, dict[str, Path]]:
    """The folder of a data set, and the annotation file of each split."""
    named = config.data_dir if config.dataset == "coco_json" else config.dataset
    if named and expanded(named).is_file():
        return expanded(named).parent, {"train": expanded(named)}
    root = folder_root(config, "coco_json")
    found = {}
    for split, names in _SPELLINGS.items():
        places = [place.format(name) for place in _PLACES for name in names]
        files = sorted({file for place in places for file in root.glob(place)})
        if len(files) > 1:
            raise DataError(
                "There must be one annotation file a split. "
                f"Received: {', '.join(map(str, files))} for {split!r}. Move all but "
                "one elsewhere."
            )
        found.update({split: files[0]} if files else {})
    if not found:
        files = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])
        found = {"train": files[0]} if len(files) == 1 else {}
    if "train" not in found:
        raise DataError(
            "A COCO data set needs the annotations of its training images. "
            f"Received: {root} without such as {root / 'train.json'} or "
            f"{root / 'annotations' / 'instances_train.json'}. Name the file itself, "
            "or put it there."
        )
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    return root, found
