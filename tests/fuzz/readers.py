"""Every reader of files: a good file, what reads it, and what it may raise."""

import dataclasses
import functools
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from gmpq_tf.data.errors import DataError
from gmpq_tf.data.folder import check_files
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.flatbuffer import FileBuilder, Quantization, read_metadata
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.files import DamagedFileError, read_arrays, read_jsonl, write_arrays
from gmpq_tf.models import ModelFileError, WeightsError, load_model
from gmpq_tf.models.foreign.files import read_weight_file
from gmpq_tf.policy import BitwidthPolicy, PolicyError
from gmpq_tf.policy.file import read_renaming
from gmpq_tf.report import ReportError, read
from gmpq_tf.report.read_maps import read_attribution
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.records import read_json, read_record, recorded_data
from gmpq_tf.train.sweep_spec import read_points
from tests.fuzz.model_files import members, saved, zipped
from tests.fuzz.mutations import damage, splice

LAYERS = {
    "conv": {"weight_bits": 4, "activation_bits": 3},
    "dense": {"weight_bits": 8, "activation_bits": 8},
}
POLICY = {"format": 1, "model": "net", "layers": LAYERS, "made_by": {"seed": [1, {}]}}
DATA = {"dataset": "digits", "batch_size": 8, "mean": [0.5], "std": None, "cache": True}
RECORD = {"stage": "pretrain", "config": {"epochs": 3, "data": DATA}, "seed": 0}
ROW = {"name": "float", "accuracy": 0.9, "bit_ops": 1024, "weight_bytes": 4}
SUMMARY = {"dataset": "digits", "model": "net", "full_precision_bit_ops": 9} | {
    "rows": [ROW, ROW],
    "attribution": "attribution.npz",
    "versions": {"keras": "3"},
}
IMPORTANCES = {
    "layers": {
        "conv": {
            "weight_bits": [2, 4],
            "weight_probabilities": [0.25, 0.75],
            "activation_bits": [8],
            "activation_probabilities": [1.0],
        }
    }
}
SWEEP = {"search": {"epochs": 1}, "grid": {"search.eta": [0, 9], "seed": [0, 1]}}
SWEEP_POINTS = {"evaluate": {"split": "test"}, "points": [{"seed": 1}, {"seed": 2}]}


@dataclasses.dataclass(frozen=True)
class Reader:
    """One row of the table.

    Args:
        file: path of the file in the workdir.
        content: the bytes of a good one.
        read: workdir -> what the file says.
        errors: what the docstring of the reader says it raises.
        damages: (content, random) -> content of a broken file; one is drawn a case.
        weight: how many cases to try here for 100 of the cheapest readers.
    """

    file: str
    content: Callable[[], bytes]
    read: Callable[[Path], object]
    errors: type[Exception] | tuple = ()
    damages: tuple[Callable, ...] = (damage,)
    weight: int = 100


def spliced(content, random):
    return splice(content.decode(), random).encode("utf-8", "surrogatepass")


def json_reader(file, value, read, errors):
    return Reader(
        file, lambda: json.dumps(value).encode(), read, errors, (spliced, damage)
    )


def spliced_lines(content, random):
    lines = content.splitlines()
    place = random.randrange(len(lines))
    lines[place] = spliced(lines[place], random)
    return b"\n".join(lines)


def damaged_member(content, random):
    """Damage inside a zip file, where no checksum tells."""
    files = members(content)
    name = random.choice(list(files))
    change = spliced if name.endswith(".json") else damage
    return zipped(files | {name: change(files[name], random)})


def spliced_attribute(content, random):
    """A hostile model configuration in an HDF5 file that is otherwise good."""
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        attributes = file.attrs
        if "model_config" in attributes:
            text = splice(attributes["model_config"], random)[:60_000]
            attributes["model_config"] = text.encode("utf-8", "surrogatepass")
    return buffer.getvalue()


def spliced_header(content, random):
    """A hostile header of a .safetensors file, its length right."""
    length = int.from_bytes(content[:8], "little")
    header = spliced(content[8 : 8 + length], random)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def state_dict():
    return {"conv.weight": np.ones((2, 3), np.float32), "bn.running_var": np.ones(3)}


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def safetensors():
    from safetensors.numpy import save

    return save(state_dict())


def attribution():
    maps = {f"{kind}_net": np.ones((2, 2, 2)) for kind in ("teacher", "student")}
    images = np.zeros((2, 4, 4, 3), np.uint8)
    return npz(images=images, labels=np.zeros(2, int), teacher=maps["teacher_net"])


def backup():
    with tempfile.TemporaryDirectory() as folder:
        path = write_arrays(Path(folder, "state.npz"), state_dict())
        return path.read_bytes()


def picture(kind):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def image_reader(kind, suffix):
    def read_image(folder):
        check_files((str(folder / f"image{suffix}"),), whole=True)

    content = functools.partial(picture, kind)
    return Reader(f"image{suffix}", content, read_image, DataError, weight=60)


def weights_reader(suffix, content, damages, weight):
    def read_weights(folder):
        return read_weight_file(folder / f"model{suffix}")

    return Reader(
        f"model{suffix}", content, read_weights, WeightsError, damages, weight
    )


def model_reader(suffix, damages):
    def read_model(folder):
        return load_model(folder / f"model{suffix}")

    content = functools.partial(saved, suffix)
    return Reader(f"model{suffix}", content, read_model, ModelFileError, damages, 20)


def tflite_reader(read_tflite):
    def content():
        file = FileBuilder()
        x, z = (file.tensor(name, (None, 4), "FLOAT32") for name in "xz")
        y = file.tensor("y", (None, 4), "INT8", Quantization((0.5,), 3))
        file.operator("QUANTIZE", [x], [y])
        file.operator("DEQUANTIZE", [y], [z])
        return file.finish({"x": x}, {"z": z}, {"classes": ["a", "b"]})

    def read_one(folder):
        return read_tflite(folder / "model.tflite")

    return Reader("model.tflite", content, read_one, ExportError)


def renamed(folder):
    policy = BitwidthPolicy("net", {"conv": (2, 3), "dense": (8, 8)})
    return policy.rename(read_renaming(str(folder / "names.json")))


BACKUP = Reader(
    "state.npz",
    backup,
    lambda folder: read_arrays(folder / "state.npz"),
    DamagedFileError,
    (damaged_member, damage),
)
READERS = {
    "backup": BACKUP,
    "metadata": tflite_reader(read_metadata),
    "tflite model": tflite_reader(TFLiteModel),
    "policy": json_reader(
        "policy.json",
        POLICY,
        lambda folder: BitwidthPolicy.load(folder / "policy.json"),
        PolicyError,
    ),
    "renaming": json_reader("names.json", {"conv": "a"}, renamed, PolicyError),
    "record": json_reader(
        "config/pretrain.json",
        RECORD,
        lambda folder: read_record(folder / "config/pretrain.json"),
        StageError,
    ),
    "recorded data": json_reader(
        "config/pretrain.json", RECORD, recorded_data, StageError
    ),
    "marker": json_reader(
        "evaluation.json", ROW, lambda folder: read_json(folder / "evaluation.json"), ()
    ),
    "summary": json_reader(
        "summary.json", SUMMARY, read.read_summary, ReportError
    ),
    "searched policy": json_reader(
        "search/policy.json", POLICY, read.read_policy, ReportError
    ),
    "macs": json_reader(
        "cost.json",
        {"layers": [{"name": "conv", "macs": 5}, {"name": "dense", "macs": 6}]},
        read.read_macs,
        ReportError,
    ),
    "importances": json_reader(
        "search/importances.json", IMPORTANCES, read.read_importances, ReportError
    ),
    "metrics": Reader(
        "search/metrics.jsonl",
        lambda: b'{"epoch": 0, "loss": 2.5}\n{"epoch": 1, "loss": null}\n',
        lambda folder: read.read_metrics(folder, "search"),
        ReportError,
        (spliced_lines, damage),
    ),
    "json lines": Reader(
        "lines.jsonl",
        lambda: b'{"epoch": 0, "loss": 2.5}\n{"epoch": 1, "loss": null}\n',
        lambda folder: read_jsonl(folder / "lines.jsonl"),
        ValueError,
        (spliced_lines, damage),
    ),
    "attribution": Reader(
        "attribution.npz",
        attribution,
        lambda folder: read_attribution(folder, "attribution.npz"),
        ReportError,
        (damaged_member, damage),
    ),
    "sweep": json_reader(
        "sweep.json", SWEEP, lambda folder: read_points(folder / "sweep.json"),
        StageError,
    ),
    "sweep of points": json_reader(
        "sweep.json", SWEEP_POINTS, lambda folder: read_points(folder / "sweep.json"),
        StageError,
    ),
    "model .keras": model_reader(".keras", (damaged_member, damaged_member, damage)),
    "model .h5": model_reader(".h5", (spliced_attribute, damage)),
    "weights .keras": weights_reader(
        ".keras", functools.partial(saved, ".keras"), (damaged_member,), 10
    ),
    "weights .h5": weights_reader(
        ".h5", functools.partial(saved, ".h5"), (spliced_attribute, damage), 15
    ),
    "weights .weights.h5": weights_reader(
        ".weights.h5", functools.partial(saved, ".weights.h5"), (damage,), 15
    ),
    "weights .npz": weights_reader(
        ".npz", lambda: npz(**state_dict()), (damaged_member, damage), 60
    ),
    "weights .safetensors": weights_reader(
        ".safetensors", safetensors, (spliced_header, damage), 60
    ),
    **{
        f"image {kind}": image_reader(kind, suffix)
        for kind, suffix in zip(
            ["JPEG", "PNG", "BMP", "GIF"], [".jpg", ".png", ".bmp", ".png"], strict=True
        )
    },
}  # fmt: skip
