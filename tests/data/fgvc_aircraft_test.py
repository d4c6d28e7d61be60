"""FGVC-Aircraft from an archive of the real layout, made here."""

import hashlib
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from gmpq_tf.data import DATASETS, DataConfig, DataError, load_dataset

tfds = pytest.importorskip("tensorflow_datasets")
fgvc_aircraft = pytest.importorskip("gmpq_tf.data.fgvc_aircraft")

ARCHIVE = "fgvc-aircraft-2013b.tar.gz"
VARIANTS = ["707-320", "A330-200", "F-16A/B"]
FAMILIES = ["A330", "Boeing 707", "F-16"]
MANUFACTURERS = ["Airbus", "Boeing"]
# Image: split, and its class at each level.
IMAGES = {
    "0000001": ("train", "707-320", "Boeing 707", "Boeing"),
    "0000002": ("train", "A330-200", "A330", "Airbus"),
    "0000003": ("train", "F-16A/B", "F-16", "Boeing"),
    "0000004": ("val", "A330-200", "A330", "Airbus"),
    "0000005": ("val", "F-16A/B", "F-16", "Boeing"),
    "0000006": ("test", "F-16A/B", "F-16", "Boeing"),
}
LEVELS = ("variant", "family", "manufacturer")


def jpeg(image_id):
    """80 x 60 grey pixels of 20 times the number, above a red banner of 20 rows."""
    pixels = np.full((80, 60, 3), 20 * int(image_id), np.uint8)
    pixels[-20:] = [255, 0, 0]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def contents():
    files = {f"images/{image_id}.jpg": jpeg(image_id) for image_id in IMAGES}
    names = (VARIANTS, FAMILIES, MANUFACTURERS)
    listed = zip(("variants", "families", "manufacturers"), names, strict=True)
    files |= {
        f"{file}.txt": "".join(f"{n}\n" for n in of).encode() for file, of in listed
    }
    for place, level in enumerate(LEVELS, start=1):
        for split in ("train", "val", "test"):
            lines = [
                f"{k} {row[place]}\n" for k, row in IMAGES.items() if row[0] == split
            ]
            files[f"images_{level}_{split}.txt"] = "".join(lines).encode()
    return files


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """Where the archive has been put by hand, its sum taken as the published one."""
    path = tmp_path / "downloads" / "manual" / ARCHIVE
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents().items():
            member = tarfile.TarInfo(f"fgvc-aircraft-2013b/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(
        fgvc_aircraft, "MD5", hashlib.md5(path.read_bytes()).hexdigest()
    )
    return str(tmp_path)


@pytest.mark.parametrize(
    "name, place, classes",
    [
        ("fgvc_aircraft", 1, VARIANTS),
        ("fgvc_aircraft/family", 2, FAMILIES),
        ("fgvc_aircraft/manufacturer", 3, MANUFACTURERS),
    ],
)
def test_every_level_has_its_labels_and_the_stored_files(
    data_dir, name, place, classes
):
    builder = tfds.builder(name, data_dir=data_dir)
    builder.download_and_prepare()
    label = builder.info.features["label"]
    assert label.names == classes
    found = {}
    for split, alias in {"train": "train", "validation": "val", "test": "test"}.items():
        raw = {"image": tfds.decode.SkipDecoding()}
        for example in builder.as_dataset(split=split, decoders=raw):
            image_id = example["image_id"].numpy().decode()
            assert example["image"].numpy() == jpeg(image_id)
            found[image_id] = (alias, label.int2str(int(example["label"])))
    assert found == {k: (row[0], row[place]) for k, row in IMAGES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("augment", [None, "random_crop", "none"])
def test_pictures_are_read_without_the_banner(data_dir, augment):
    config = DataConfig(
        "fgvc_aircraft",
        data_dir,
        image_size=16,
        scaling="0..255",
        batch_size=1,
        augment=augment,
        download=True,
    )
    dataset = load_dataset(config)
    assert dataset.sizes == {"train": 3, "validation": 2, "test": 1}
    assert dataset.class_names == tuple(VARIANTS)
    greys = []
    for batches in (dataset.train(0, 1), dataset.validation(), dataset.test()):
        for images, _ in batches:
            assert np.ptp(images) <= 2
            greys.append(round(float(np.mean(images)) / 20))
    assert sorted(greys) == [1, 2, 3, 4, 5, 6]


def test_another_archive_is_refused(data_dir, monkeypatch):
    monkeypatch.setattr(fgvc_aircraft, "MD5", "0" * 32)
    config = DataConfig("fgvc_aircraft", data_dir, image_size=16, download=True)
    with pytest.raises(DataError, match=rf"published MD5.*{ARCHIVE}.*Remove it"):
        load_dataset(config)


def test_row_is_the_published_benchmark():
    """Maji et al., 2013: 100 variants, a banner of 20 pixels; 512 pixels in GMPQ."""
    row = DATASETS["fgvc_aircraft"]
    assert (row.num_classes, row.banner, row.image_size) == (100, 20, 512)
    assert fgvc_aircraft.URL.endswith(f"/fgvc-aircraft/archives/{ARCHIVE}")
    assert tuple(fgvc_aircraft.FgvcAircraft.builder_configs) == LEVELS
