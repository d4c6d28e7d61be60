"""Small detection sets made here, as VOC folders and as COCO files."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

# Of each image its (height, width) and its objects: name, xmin, ymin, xmax, ymax as VOC
# counts them, and whether they are difficult.
SET = {
    "a": ((40, 60), [("dog", 1, 1, 60, 40, 0), ("cat", 11, 21, 30, 40, 1)]),
    "b": ((30, 30), [("cat", 5, 6, 7, 28, 0)]),
    "c": ((50, 40), []),
    "d": ((20, 64), [("dog", 33, 1, 64, 10, 0)]),
    "e": ((20, 64), [("cat", 3, 2, 12, 19, 0), ("cat", 30, 3, 60, 20, 0)]),
    "f": ((32, 32), [("dog", 9, 9, 24, 24, 0)]),
}
LISTS = {"train": "abcd", "val": "e", "test": "f"}


def picture(path, size, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), "uint8")
    Image.fromarray(pixels).save(path)


def xml(size, objects, extra=""):
    rows = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for name, x1, y1, x2, y2, hard in objects
    )
    height, width = size
    return (
        f"<annotation><filename>/etc/passwd</filename>{extra}<size><width>{width}"
        f"</width><height>{height}</height><depth>3</depth></size>{rows}</annotation>"
    )


def voc_kit(root, lists=LISTS, content=SET):
    """JPEGImages, Annotations and ImageSets, as the development kit has them."""
    for number, (name, (size, objects)) in enumerate(content.items()):
        picture(root / "JPEGImages" / f"{name}.png", size, number)
        path = root / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(xml(size, objects), encoding="utf-8")
    for name, members in lists.items():
        path = root / "ImageSets" / "Main" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(members) + "\n", encoding="utf-8")
    return root


def coco_content(names, folder=""):
    """The same objects of some images as COCO writes them, ids with gaps."""
    numbers = {"cat": 7, "dog": 90}
    annotations = [
        {
            "id": 100 * place + n,
            "image_id": 5 + place,
            "category_id": numbers[kind],
            "bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1],
            "iscrowd": hard,
        }
        for place, name in enumerate(names)
        for n, (kind, x1, y1, x2, y2, hard) in enumerate(SET[name][1])
    ]
    images = [
        {
            "id": 5 + place,
            "file_name": f"{folder}{name}.png",
            "height": SET[name][0][0],
            "width": SET[name][0][1],
        }
        for place, name in enumerate(names)
    ]
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_set(root):
    """annotations/instances_*.json, and a folder of images for each split."""
    for split, names in LISTS.items():
        for name in names:
            place = root / f"{split}2017" / f"{name}.png"
            picture(place, SET[name][0], list(SET).index(name))
        path = Path(root, "annotations", f"instances_{split}2017.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(coco_content(names)), encoding="utf-8")
    return root
