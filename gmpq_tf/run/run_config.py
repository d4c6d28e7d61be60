"""Settings of how a command runs; they do not change what it computes."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Literal

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class WorkdirConfig:
    """Where a command writes and how it runs; none of it changes the results.

    Args:
        workdir: Folder that holds everything of a run. A finished stage in it is
            skipped, an interrupted one resumes.
        overwrite: Delete what the stage left in the workdir and start it again.
        threads: Threads TensorFlow may use; 0 leaves the choice to TensorFlow.
        progress: A bar that is redrawn, lines (one per epoch, and one per minute within
            it), or nothing; auto: bar on a terminal, lines elsewhere.
    """

    workdir: str = "runs/default"
    overwrite: bool = False
    threads: int = 0
    progress: Literal["auto", "bar", "line", "none"] = "auto"

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(
                f"threads must be 0 or more. Received: threads={self.threads}."
            )


@dataclasses.dataclass(frozen=True)
class EventsConfig(WorkdirConfig):
    """As `WorkdirConfig`, for a command that can write TensorBoard events.

    Args:
        tensorboard: Write TensorBoard events too, into the folder tensorboard of the
            stage or, in a sweep, of the workdir.
    """

    tensorboard: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise ValueError(
                "TensorBoard events are written with the package tensorboard. "
                "Received: tensorboard=True, without it. `pip install tensorboard`, or "
                "leave --tensorboard out: all that they show is in the workdir in any "
                "case."
            )


@dataclasses.dataclass(frozen=True)
class RunConfig(EventsConfig):
    """Where a training command writes and how it runs.

    Args:
        steps_per_execution: Training steps per call of the compiled function.
        jit_compile: Compile the training step with XLA.
        distribution: Train on this machine's first device, on several of its GPUs
            (mirrored), or on several machines (multi_worker, which reads TF_CONFIG).
            batch_size is that of all devices together.
        replicas: With mirrored, the number of GPUs, or of parts of the CPU where there
            is no GPU; 0: all GPUs.
        deterministic: Use only deterministic kernels, which are slower on GPUs.
    """

    steps_per_execution: int = 1
    jit_compile: bool = False
    distribution: Literal["none", "mirrored", "multi_worker"] = "none"
    replicas: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps_per_execution < 1:
            raise ValueError(
                "steps_per_execution must be 1 or more. "
                f"Received: steps_per_execution={self.steps_per_execution}."
            )
        if self.replicas < 0 or (self.replicas and self.distribution != "mirrored"):
            raise ValueError(
                "replicas must be 0 or more, and is for --distribution=mirrored. "
                f"Received: replicas={self.replicas}, "
                f"distribution={self.distribution!r}."
            )
        if self.jit_compile and self.distribution != "none":
            raise ValueError(
                "XLA compiles the step of one device. Received: jit_compile=True, "
                f"distribution={self.distribution!r}. Leave --jit_compile out: the "
                "quantizers are compiled in any case."
            )


def set_threads(threads: int) -> None:
    """Limits TensorFlow's threads; must be called before TensorFlow computes anything.

    Args:
        threads: largest number of threads; 0 leaves the choice to TensorFlow.
    """
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
