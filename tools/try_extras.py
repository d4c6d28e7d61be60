"""Install each extra into an empty environment, and use what it is for.

`python tools/try_extras.py [EXTRA ...]` (none: all of them, and the package alone).
Needs a package index; an environment takes two gigabytes, and is deleted after.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Extra -> what must work with it, as a program.
CHECKS = {
    "tfmot": "from gmpq_tf.export import tfmot; tfmot.quantize_scope()",
    "litert": "import litert_quantizer; import gmpq_tf.export.litert_recipe",
    "safetensors": "import safetensors.numpy; import gmpq_tf.models",
    "ray": "import ray; from gmpq_tf.train.sweep_config import SweepConfig; "
    "SweepConfig('s', 'm', runner='ray')",
    "optuna": "from gmpq_tf.train.sweep_study import Study; "
    "Study({}, ['accuracy'], 'tpe', 0).draw(0)",
    "detection": "import pycocotools.coco, keras_cv",
    "clients": "import mediapipe, tflite_micro",
    "docs": "import mkdocs, mkdocstrings, latex2mathml, nbclient, ipykernel",
    "dev": "import pytest, hypothesis, tensorboard, build, twine",
}
CORE = """
import keras, numpy as np, gmpq_tf as gmpq
from gmpq_tf.export.tflite import export_tflite
inputs = keras.Input((8, 8, 1))
x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
x = keras.layers.GlobalAveragePooling2D()(x)
model = keras.Model(inputs, keras.layers.Dense(2)(x))
student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
images = np.random.default_rng(0).uniform(0, 1, (16, 8, 8, 1)).astype("float32")
gmpq.calibrate(student, images)
assert export_tflite(student, "m.tflite", verify_data=images).twin.off == 0
"""


def try_extra(extra: str, folder: Path) -> None:
    """Installs the package with an extra, and runs its check.

    Args:
        extra: a key of `CHECKS`, or "" for the package alone.
        folder: empty; gets the environment.

    Raises:
        subprocess.CalledProcessError: it cannot be installed, or does not work.
    """
    venv.create(folder / "venv", with_pip=True)
    python = (
        folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    )
    pins = "constraints-clients.txt" if extra == "clients" else "constraints.txt"
    package = f"{ROOT}[{extra}]" if extra else str(ROOT)
    options = [
        "--quiet",
        "--disable-pip-version-check",
        "--constraint",
        str(ROOT / pins),
    ]
    subprocess.run([python, "-m", "pip", "install", *options, package], check=True)
    for program in (CORE, CHECKS.get(extra, "")):
        subprocess.run([python, "-c", program], check=True, cwd=folder)


def main() -> None:
    """Tries the extras that are named, or all."""
    for extra in sys.argv[1:] or ["", *CHECKS]:
        with tempfile.TemporaryDirectory() as folder:
            try_extra(extra, Path(folder))
        sys.stdout.write(f"{extra or 'the package alone'}: works\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
