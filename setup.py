"""Package of gmpq_tf. Exact versions of everything: constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "tensorflow>=2.20",  # runs the models and reads images (tf.data)
    "keras>=3.10,<4",  # the models are Keras 3; 4 may move the graph we read
    "numpy",  # arithmetic outside the graph
    "scipy",  # the knapsack that picks a policy within its budget
    "absl-py",  # flags and logging of the command lines
    "tensorflow-datasets",  # CIFAR-10 and every other public image set by name
    "importlib_resources",  # tensorflow-datasets needs it and does not declare it
    "ai-edge-litert",  # runs the exported .tflite to compare it with the Keras model
    "flatbuffers",  # the format that export/ writes .tflite files in
    "tqdm",  # the progress display of trainings on a terminal
    "matplotlib",  # pictures of the report
    "scikit-learn",  # its 1,797 handwritten digits: the demo needs no network
    "filelock>=4",  # one process at a time in a folder, on every system
    "pillow",  # reads folders of images and says which file is corrupt
]
# TFMOT works on Keras 2 models only, which tf_keras holds.
TFMOT = ["tensorflow-model-optimization", "tf_keras"]
LITERT = ["litert-quantizer"]
SAFETENSORS = ["safetensors"]  # state dicts of torchvision for --weights
RAY = ["ray"]  # sweeps on a cluster: --runner=ray
OPTUNA = ["optuna"]  # sweeps that draw from ranges: --trials
# Boxes, anchors and the COCO metric that keras-cv computes with pycocotools.
DETECTION = ["keras-cv", "pycocotools"]
DOCS = [
    "mkdocs-material",  # the pages of docs/ as a site that needs no network
    "mkdocstrings[python]",  # its reference, from the docstrings
    "latex2mathml",  # equations that browsers show without a script
    "nbclient",  # runs the notebook
    "ipykernel",
]
EXTRAS = {
    "tfmot": TFMOT,
    # Runs the recipes that export/litert_recipe.py writes.
    "litert": LITERT,
    "safetensors": SAFETENSORS,
    "ray": RAY,
    "optuna": OPTUNA,
    "detection": DETECTION,
    # Programs that run exported files. They want absl-py 2, and "dev" absl-py 1: the
    # Makefile gives them an environment of their own.
    "clients": ["mediapipe", "tflite-micro"],
    "docs": DOCS,
    "dev": [
        *TFMOT,  # the tests of gmpq_tf/export/tfmot
        *LITERT,
        *SAFETENSORS,
        *RAY,
        *OPTUNA,
        *DETECTION,
        "pytest",
        "pytest-xdist",  # the tests on both cores
        "hypothesis",  # properties of quantizers on drawn inputs
        "ruff",
        "mypy",
        "tensorboard",  # --tensorboard, and the test that stock TensorBoard works
        "build",  # python -m build: the wheel to publish
        "twine",  # twine check: what a package index will say of it
        "setuptools>=68",  # tests/wheel_test.py builds without network
        "wheel",
    ],
}
COMMANDS = {
    "gmpq-compress": "train.compress",
    "gmpq-pretrain": "train.pretrain",
    "gmpq-search": "train.search",
    "gmpq-finetune": "train.finetune",
    "gmpq-evaluate": "train.evaluate",
    "gmpq-export": "export.command",
    "gmpq-report": "train.report",
    "gmpq-cost": "train.cost",
    "gmpq-latency": "train.latency",
    "gmpq-sweep": "train.sweep",
    "gmpq-demo": "train.demo",
}
ROOT = Path(__file__).parent
VERSION = (ROOT / "gmpq_tf" / "version.py").read_text(encoding="utf-8").split('"')[-2]

setup(
    name="gmpq-tf",
    version=VERSION,
    description="Mixed-precision quantization policies that transfer, for Keras 3",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The gmpq_tf maintainers",
    keywords="quantization mixed-precision keras tensorflow tflite litert",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    # Installed, train/ and export/ must not claim top-level names as common as theirs.
    packages=find_packages(include=["gmpq_tf", "gmpq_tf.*"]),
    package_data={"gmpq_tf": ["py.typed"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            f"{command} = gmpq_tf.{module}:run" for command, module in COMMANDS.items()
        ]
    },
)
