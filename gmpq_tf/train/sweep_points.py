"""The commands that one point of a sweep consists of."""

from __future__ import annotations

from pathlib import Path

from gmpq_tf.train.sweep_children import Commands
from gmpq_tf.train.sweep_spec import STAGES, TRAININGS, Flags, Point, as_flag


def commands_of(folder: Path, point: Point, training: Flags, common: Flags) -> Commands:
    """Returns the stages of a point, each with its flags.

    Args:
        folder: workdir of the point.
        point: its flags.
        training: flags of every training.
        common: flags of every stage.
    """
    commands = []
    for stage in STAGES:
        given = training if stage in TRAININGS else {"names": "finetune"}
        flags = common | given | {"workdir": folder} | point[stage]
        words = [f"--{flag}={as_flag(flag, value)}" for flag, value in flags.items()]
        commands.append((stage, words))
    return commands
