"""Runs TFLite files with the LiteRT interpreter, and times them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.flatbuffer import read_file
from gmpq_tf.export.tflite.turns import take_turns
from gmpq_tf.inputs import InputError, match_inputs

WARM_UP_RUNS = 3
LONGEST_TRIAL = 120  # seconds
# TFLite Micro uses the reference kernels, except for dense layers.
KERNELS = {
    "xnnpack": OpResolverType.AUTO,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}


class TFLiteModel:
    """A `.tflite` file ready to run.

    A file is first run once in a separate process (0.2 s and one image), because
    damaged files can crash the runtime.

    Args:
        path: the file; or its bytes, which are trusted.
        num_threads: number of threads of the interpreter.
        use_xnnpack: whether to use the default kernels; False: the built-in ones.
        kernels: "xnnpack", "builtin", or "reference" for the plain ones that TFLite
            Micro uses too; None: decided by `use_xnnpack`.

    Raises:
        ExportError: the file is missing or not a TFLite model.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | bytes,
        num_threads: int = 1,
        use_xnnpack: bool = True,
        kernels: str | None = None,
    ) -> None:
        content = path if isinstance(path, bytes) else read_file(path)
        if not isinstance(path, bytes):
            _survive(path)
        kernels = kernels or ("xnnpack" if use_xnnpack else "builtin")
        try:
            self.interpreter = Interpreter(
                model_content=content,
                num_threads=num_threads,
                experimental_op_resolver_type=KERNELS[kernels],
            )
            self.interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise _not_a_model(path, str(error)) from error
        self.inputs = self.interpreter.get_input_details()
        self.outputs = self.interpreter.get_output_details()
        self.file_bytes = len(content)

    @property
    def batch(self) -> int | None:
        """Batch size of the file; None: any."""
        size = int(self.inputs[0]["shape_signature"][0])
        return None if size < 0 else size

    def predict(self, x: Any, batch_size: int = 64) -> Any:
        """Runs the model.

        Args:
            x: [images, ...]; floats as the Keras model takes them, or integers of the
                input's own type. Where the model has several inputs, a dict by name,
                or a list in the order of the file: that of `student.inputs` in what
                `export_tflite` wrote; TensorFlow's converter sorts by name.
            batch_size: images in a run, if the file does not fix them.

        Returns:
            Floats [images, ...] (integers are dequantized); a list, if the model has
            several outputs.

        Raises:
            ExportError: the shape or a name does not fit the model.
        """
        arrays = self._arrays(x)
        self.check(arrays)
        runs = [
            self.run([a[start : start + batch_size] for a in arrays])
            for start in range(0, len(arrays[0]), batch_size)
        ]
        results = [np.concatenate(parts) for parts in zip(*runs, strict=True)]
        return results[0] if len(results) == 1 else results

    def _arrays(self, x: Any) -> list[np.ndarray]:
        """Arrays in the order of the file's inputs."""
        if not isinstance(x, Mapping):
            return [np.asarray(a) for a in (x if isinstance(x, (list, tuple)) else [x])]
        names = self.input_names
        try:
            pairs = match_inputs(names, x, names, str)
        except InputError as error:
            raise ExportError(str(error)) from error
        return [np.asarray(value) for _, value in pairs]

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, from the file's signature if it has one."""
        names = {detail["index"]: detail["name"] for detail in self.inputs}
        for key in list(self.interpreter.get_signature_list())[:1]:
            details = self.interpreter.get_signature_runner(key).get_input_details()
            names.update({d["index"]: name for name, d in details.items()})
        return [names[detail["index"]] for detail in self.inputs]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs one batch, arrays [B, ...]; returns every output as floats, [B, ...]."""
        stored = self.stored(arrays)
        return [to_floats(*pair) for pair in zip(self.outputs, stored, strict=True)]

    def stored(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs one batch, arrays [B, ...]; returns every output in the file's own type.

        A file with a fixed batch is run as often as necessary; the last batch is filled
        up with copies of the last image.
        """
        return in_batches(self._invoke, arrays, self.batch)

    def _invoke(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        if list(self.inputs[0]["shape"]) != list(arrays[0].shape):
            for detail, array in zip(self.inputs, arrays, strict=True):
                self.interpreter.resize_tensor_input(detail["index"], array.shape)
            self.interpreter.allocate_tensors()
            self.inputs = self.interpreter.get_input_details()
        for detail, array in zip(self.inputs, arrays, strict=True):
            self.interpreter.set_tensor(detail["index"], to_input(detail, array))
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(d["index"]) for d in self.outputs]

    def check(self, arrays: Sequence[np.ndarray]) -> None:
        """Raises `ExportError` unless the arrays have the shapes of the inputs."""
        wanted = [tuple(d["shape"][1:].tolist()) for d in self.inputs]
        received = [a.shape[1:] for a in arrays]
        if wanted != received or len({len(a) for a in arrays}) != 1:
            raise ExportError(
                f"Inputs must have the shapes {[('images', *s) for s in wanted]}. "
                f"Received: shapes={[a.shape for a in arrays]}. Resize the images as "
                "in training."
            )
        if not len(arrays[0]):
            raise ExportError(
                "There must be at least one input. Received: 0 images. Pass some."
            )


def in_batches(
    run: Callable[[list[np.ndarray]], Sequence[Any]],
    arrays: Sequence[np.ndarray],
    size: int | None,
) -> list[np.ndarray]:
    """Applies a function to batches of a fixed size; the last is filled up with copies.

    Args:
        run: arrays -> arrays, with one row for each image.
        arrays: inputs, [B, ...] each.
        size: batch size; None: all images at once.

    Returns:
        Outputs for all images, [B, ...] each.
    """
    count = len(arrays[0])
    if size is None or size == count:
        return [np.asarray(part) for part in run(list(arrays))]
    runs = []
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        runs.append(run([array[rows] for array in arrays]))
    return [np.concatenate(parts)[:count] for parts in zip(*runs, strict=True)]


def latencies(
    contents: Mapping[str, bytes], runs: int, num_threads: int = 1
) -> dict[str, float]:
    """Median seconds for one image in each of some files.

    The files take turns, so that other work of the machine affects all of them alike.
    The time of a fixed batch is divided by its size.

    Args:
        contents: name -> bytes of a file; all have the same inputs.
        runs: timed runs of each file.
        num_threads: threads of each interpreter.

    Returns:
        name -> seconds.
    """
    models = {n: TFLiteModel(c, num_threads) for n, c in contents.items()}
    invokes = {name: model.interpreter.invoke for name, model in models.items()}
    turns = take_turns(invokes, WARM_UP_RUNS + runs)
    return {
        name: statistics.median(turns[name][WARM_UP_RUNS:]) / (model.batch or 1)
        for name, model in models.items()
    }


def runtime_name() -> str:
    """Text: the runtime, its version and the processor of this machine."""
    version = importlib.metadata.version("ai-edge-litert")
    return f"ai-edge-litert {version} with XNNPACK on {processor()}"


def processor() -> str:
    """Text: the architecture of this machine's processor, and its name if known."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        named = [line for line in lines if line.lower().startswith("model name")]
        if named:
            return f"{platform.machine()} ({named[0].partition(':')[2].strip()})"
    return f"{platform.machine()} ({platform.processor() or 'name not known'})"


# Imports nothing of this package, so that the process starts in 0.2 s.
_TRIAL = """
import sys
from ai_edge_litert.interpreter import Interpreter
try:
    interpreter = Interpreter(sys.argv[1])
    interpreter.allocate_tensors()
    interpreter.invoke()
except (ValueError, RuntimeError):
    pass  # whoever loads the file sees the same
"""


def _survive(path: str | os.PathLike[str]) -> None:
    """Raises `ExportError` if a file crashes the process that runs it, or hangs."""
    if not sys.executable:  # Python is embedded: nothing to start
        return
    try:
        ended = subprocess.run(  # noqa: S603  our own program
            [sys.executable, "-c", _TRIAL, os.fspath(path)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            timeout=LONGEST_TRIAL,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _not_a_model(path, f"one run took over {LONGEST_TRIAL} s") from error
    if ended.returncode not in (0, 1):  # 1: a Python error
        raise _not_a_model(path, f"it ended the process: code {ended.returncode}")


def _not_a_model(path: Any, why: str) -> ExportError:
    return ExportError(
        "The file must be a TFLite model that the runtime knows. "
        f"Received: {_shown(path)} ({why[:200]}). Export it again."
    )


def to_input(detail: Mapping[str, Any], array: np.ndarray) -> np.ndarray:
    """An array converted to the type of a file's input (quantized), any shape."""
    kind = detail["dtype"]
    if kind == np.float32 or array.dtype == kind:
        return array.astype(kind, copy=False)
    scale, zero_point = detail["quantization"]
    limits = np.iinfo(kind)
    codes = np.floor(array / np.float32(scale) + 0.5) + zero_point
    return np.clip(codes, limits.min, limits.max).astype(kind)


def to_floats(detail: Mapping[str, Any], values: np.ndarray) -> np.ndarray:
    """The dequantized values of a file's output, float32 of the same shape."""
    if values.dtype == np.float32:
        return values
    scale, zero_point = detail["quantization"]
    return (values.astype("float32") - zero_point) * np.float32(scale)


def _shown(path: Any) -> str:
    return f"{len(path)} bytes" if isinstance(path, bytes) else f"path={str(path)!r}"
