"""Measures how long the layers of a model take in an exported file, shape by shape.

  python -m train.latency --model=model.keras --output=latency.json
  python -m train.latency --model=model.keras --output=latency.json --policy=uniform:4,4
  python -m train.latency --model=model.keras --write_only=phone
  python -m train.latency --read=phone --output=phone.json

Every operator shape is measured once, in each storage its kernel can have; rows that
--output holds already are kept. With --policy, or with a fine-tuned model as --model,
the time of the whole file is predicted from the table and compared with a measurement.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import keras

from gmpq_tf.export.latency.phone import Folder, read_folder, write_folder
from gmpq_tf.export.latency.programs import COPIES, Program, student_of
from gmpq_tf.export.latency.timing import Timing, time_files
from gmpq_tf.export.tflite.arguments import check_student
from gmpq_tf.export.tflite.lowering import Lowered, lower
from gmpq_tf.latency import LatencyError, LatencyTable, parse_model
from gmpq_tf.run.app import run_main
from gmpq_tf.run.flags import from_flags
from gmpq_tf.train.cost import CostConfig, counted_model
from gmpq_tf.train.policies import read_policy
from gmpq_tf.transform.calibrate import input_quantizers

FILES_AT_ONCE = 32  # files timed in turns; the table is written after each group


@dataclasses.dataclass(frozen=True)
class LatencyConfig:
    """Which model is measured, how, and where the table is.

    Args:
        model: Built-in name, a .keras or .h5 file, or the model.keras of a fine-tuning.
            For the last only the operators of its exported file are measured.
        image_size: Side of the square images, in pixels: of a built-in model, or of a
            file whose input leaves its size open.
        channels: Channels of the images a built-in model reads.
        num_classes: Outputs of a built-in model.
        policy: A policy file, or uniform:WEIGHT_BITS,ACTIVATION_BITS, for which a whole
            file is predicted and measured; none: only the table is made.
        rename_layers: How the layers of the policy file are called in the model:
            prefix=TEXT, or a JSON file {old name: new name}.
        storage: How the whole file stores kernels.
        output: The table, a JSON file; rows that it holds already are kept.
        device: Name of the device in the table.
        runtime_threads: Threads of the runtime.
        rounds: How many turns each file gets.
        invocations: Timed runs in one turn.
        write_only: Folder to write the files into, with a script that times them on a
            phone, instead of timing them here; none: time them here.
        read: Such a folder in which the script has run; none: time them here.
    """

    model: str | None = None
    image_size: int | None = None
    channels: int = 3
    num_classes: int | None = None
    policy: str | None = None
    rename_layers: str | None = None
    storage: Literal["fast", "packed", "smallest"] = "smallest"
    output: str = "latency.json"
    device: str = "this machine"
    runtime_threads: int = 1
    rounds: int = 20
    invocations: int = 10
    write_only: str | None = None
    read: str | None = None

    def __post_init__(self) -> None:
        for name in ("runtime_threads", "rounds", "invocations"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be 1 or more. Received: {name}={getattr(self, name)}."
                )
        if self.write_only and self.read:
            raise ValueError(
                "Files are written for a phone, or its times are read. Received: "
                f"write_only={self.write_only!r}, read={self.read!r}. Give one of them."
            )
        if self.read is not None and (self.model or self.policy):
            raise ValueError(
                "The folder says which model and policy its files are of. Received: "
                f"read={self.read!r}, model={self.model!r}, policy={self.policy!r}. "
                "Leave --model and --policy out."
            )
        if self.policy is None and self.rename_layers is not None:
            raise ValueError(
                "rename_layers needs a policy. Received: "
                f"rename_layers={self.rename_layers!r}, policy=None. Give --policy."
            )
        if self.read is None and self.model is None:
            raise ValueError(
                "A model must be given. Received: model=None. Give a .keras or .h5 "
                "file, or a built-in name."
            )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Predicted and measured milliseconds of one whole file."""

    predicted: float
    measured: float

    def __str__(self) -> str:
        share = self.predicted / self.measured - 1
        return (
            f"predicted {self.predicted:.4f} ms, measured {self.measured:.4f} ms "
            f"({share:+.1%})"
        )


Timer = Callable[[dict[str, bytes], Timing], dict[str, float]]


def measure(config: LatencyConfig, timer: Timer = time_files) -> Comparison | None:
    """Makes or completes a table, and compares a policy's file with it.

    Args:
        config: the flags.
        timer: times files: name -> content of the .tflite file in, name -> milliseconds
            out.

    Returns:
        Predicted and measured time; None without a policy.

    Raises:
        ValueError: a file or a name cannot be used, or the table is of another device.
    """
    if config.read is not None:
        return _read(config, Path(config.read))
    program, table, whole = Program(), open_table(config), None
    model = counted_model(_counted(config))
    if input_quantizers(model):
        if config.policy is not None:
            raise ValueError(
                "A fine-tuned model has its policy. Received: "
                f"policy={config.policy!r}, model={config.model!r}. Leave --policy out."
            )
        check_student(model)
        whole = lower(model, config.storage)
    else:
        measured = program.add_model(model)
        if config.policy is not None:
            policy = read_policy(config.policy, model, config.rename_layers)
            whole = lower(student_of(model, policy), config.storage)
    keys = program.add(whole) if whole is not None else []
    if config.write_only is not None:
        models = [] if input_quantizers(model) else [measured.to_json()]
        _write(config, Path(config.write_only), program, models, whole, tuple(keys))
        return None
    table = _completed(table, program, config, timer)
    if not input_quantizers(model):
        table = table.with_model(measured)
        table.save(config.output)
    print(f"{len(table.rows)} operators: {config.output}")
    if whole is None:
        return None
    found = timer({"": whole.content}, _timing(config))[""]
    return Comparison(table.predict(keys), found)


def open_table(config: LatencyConfig) -> LatencyTable:
    """Returns the table that `config.output` holds, or an empty one.

    Raises:
        LatencyError: the table is of another device, runtime or number of threads.
    """
    version = importlib.metadata.version("ai-edge-litert")
    phone = config.read is not None
    name = "benchmark_model" if phone else "ai-edge-litert"
    runtime = {"name": name, "version": "not known" if phone else version}
    processor = "not known" if phone else platform.machine()
    empty = LatencyTable(
        config.device, config.runtime_threads, runtime, processor, _now()
    )
    if config.write_only is not None or not Path(config.output).exists():
        return empty
    table = LatencyTable.load(config.output)
    for what in ("device", "threads", "runtime", "processor"):
        have, want = getattr(table, what), getattr(empty, what)
        if have != want:
            raise LatencyError(
                "A table must be of one device and runtime. "
                f"Received: {what}={want!r}, and output={config.output!r} with "
                f"{have!r}. Choose another --output."
            )
    return table


def _completed(
    table: LatencyTable, program: Program, config: LatencyConfig, timer: Timer
) -> LatencyTable:
    """Measures and adds the missing rows; saves the table after every few files."""
    names = table.missing(program.files)
    for start in range(0, len(names), FILES_AT_ONCE):
        group = {key: program.files[key] for key in names[start:][:FILES_AT_ONCE]}
        times = timer(group, _timing(config))
        table = table.with_rows({k: ms / COPIES for k, ms in times.items()}, _now())
        table.save(config.output)
        print(f"  {start + len(group)} of {len(names)} operators measured")
    return table


def _write(
    config: LatencyConfig,
    path: Path,
    program: Program,
    models: list,
    whole: Lowered | None,
    keys: tuple[str, ...],
) -> None:
    names = {f"{i:04d}": key for i, key in enumerate(program.files)}
    folder = Folder(names, COPIES, config.runtime_threads, models, keys)
    files = {name: program.files[key] for name, key in names.items()}
    write_folder(path, files, folder, whole.content if whole is not None else None)
    print(f"{len(files)} files: {path}. Run {path}/run.sh, and then --read={path}.")


def _read(config: LatencyConfig, path: Path) -> Comparison | None:
    folder, rows, whole = read_folder(path)
    threads = dataclasses.replace(config, runtime_threads=folder.threads)
    table = open_table(threads).with_rows(rows, _now())
    for model in folder.models:
        table = table.with_model(parse_model(model))
    table.save(config.output)
    print(f"{len(table.rows)} operators: {config.output}")
    if whole is None:
        return None
    return Comparison(table.predict(folder.whole), whole)


def _counted(config: LatencyConfig) -> CostConfig:
    return CostConfig(
        model=config.model,
        image_size=config.image_size,
        channels=config.channels,
        num_classes=config.num_classes,
    )


def _timing(config: LatencyConfig) -> Timing:
    return Timing(config.runtime_threads, config.rounds, config.invocations)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def main(argv: list[str]) -> None:
    """Runs the command with the flags already parsed.

    Args:
        argv: not used.
    """
    keras.utils.set_random_seed(0)  # a built-in model has random weights
    compared = measure(from_flags(LatencyConfig))
    if compared is not None:
        print(compared)


def run() -> None:
    """Parses the flags and runs the command; entry point of `gmpq-latency`."""
    run_main(main, __doc__, LatencyConfig)


if __name__ == "__main__":
    run()
