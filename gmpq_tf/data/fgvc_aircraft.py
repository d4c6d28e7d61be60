"""FGVC-Aircraft as a TFDS builder; TFDS itself has it only shrunk to 72 pixels.

Importing this module makes `tfds.builder("fgvc_aircraft")` work. The archive is fetched
from the authors' page, or taken from `<data_dir>/downloads/manual/` if it lies there.
The JPEG files are stored unchanged, including the banner of 20 rows at the bottom that
names the photographer. The description of the data set demands that the banner be
removed; the row in `DATASETS` does so when an image is read, which avoids a second
lossy compression.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from gmpq_tf.data.errors import DataError

HOMEPAGE = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
URL = f"{HOMEPAGE}archives/fgvc-aircraft-2013b.tar.gz"
MD5 = "d4acdd33327262359767eeaa97a4f732"  # As published; there is no SHA-256.
# Each level: the file with the names of its classes.
LEVELS = {
    "variant": "variants.txt",
    "family": "families.txt",
    "manufacturer": "manufacturers.txt",
}
_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_CITATION = """@techreport{maji13fine-grained,
  title = {Fine-Grained Visual Classification of Aircraft},
  author = {S. Maji and J. Kannala and E. Rahtu and M. Blaschko and A. Vedaldi},
  year = {2013},
  archivePrefix = {arXiv},
  eprint = {1306.5151},
  primaryClass = "cs-cv",
}"""


class FgvcAircraft(tfds.core.GeneratorBasedBuilder):
    """10,000 photographs of aircraft: 100 variants, 70 families, 30 manufacturers.

    3,334 training, 3,333 validation and 3,333 test images. Configs: `variant` (the
    default), `family`, `manufacturer`. For non-commercial research only.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=level, description=f"Classes: each {level}.")
        for level in LEVELS
    ]

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(),  # Named by the archive.
            "image_id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{type(self).__doc__}\n{__doc__}",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage=HOMEPAGE,
            citation=_CITATION,
            license="Non-commercial research; the photographers keep their rights.",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        archive = Path(dl_manager.download_dir, "manual", Path(URL).name)
        if not archive.exists():
            archive = dl_manager.download(URL)
        check_md5(archive)
        folder = Path(dl_manager.extract(archive), "fgvc-aircraft-2013b", "data")
        level = self.builder_config.name
        self.info.features["label"].names = _lines(folder / LEVELS[level])
        return {
            split: self._generate_examples(folder, f"images_{level}_{name}.txt")
            for split, name in _SPLITS.items()
        }

    def _generate_examples(
        self, folder: Path, annotations: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for line in _lines(folder / annotations):
            image_id, label = line.split(" ", 1)
            path = folder / "images" / f"{image_id}.jpg"
            yield image_id, {"image": path, "label": label, "image_id": image_id}


def check_md5(path: Path) -> None:
    """Refuses an archive that is not the published one.

    Args:
        path: The archive.

    Raises:
        DataError: Its MD5 sum differs.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != MD5:
        raise DataError(
            f"The archive must have the published MD5 sum {MD5}. "
            f"Received: {path} with {digest.hexdigest()}. Remove it and fetch it again "
            f"from {URL}."
        )


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]
