"""Writes the points of a sweep as TensorBoard's table of hyperparameters."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from gmpq_tf.report.layout import TENSORBOARD
from gmpq_tf.train.sweep_results import figure_of, point_row
from gmpq_tf.train.sweep_spec import Flags, Point, as_flag

COSTS = ("bit_ops", "weight_bytes")


def write_hparams(workdir: Path, points: Mapping[str, Point]) -> Path:
    """Writes flags and results of the finished points.

    Args:
        workdir: folder of the sweep.
        points: name -> flags.

    Returns:
        The folder of the events, whose earlier content is deleted.
    """
    from tensorboard.plugins.hparams import api

    folder = workdir / TENSORBOARD
    shutil.rmtree(folder, ignore_errors=True)
    settings = swept(points)
    names = dict.fromkeys(key for values in settings.values() for key in values)
    found = {name: point_row(workdir / "points" / name) for name in settings}
    rows = {name: row for name, row in found.items() if row is not None}
    figures = [*(dict.fromkeys(map(figure_of, rows.values())) or ["accuracy"]), *COSTS]
    metrics = [api.Metric(name) for name in figures]
    with tf.summary.create_file_writer(str(folder)).as_default():
        api.hparams_config([api.HParam(name) for name in names], metrics)
    for name, row in rows.items():
        with tf.summary.create_file_writer(str(folder / name)).as_default():
            api.hparams(settings[name], trial_id=name)
            for figure in figures:
                if row.get(figure) is not None:
                    tf.summary.scalar(figure, row[figure], step=0)
    return folder


def swept(points: Mapping[str, Point]) -> dict[str, dict[str, Any]]:
    """Returns the flags in which points differ; all flags if they differ in none.

    Args:
        points: name -> flags, by stage.

    Returns:
        Name -> flag, such as `search.eta` -> value; lists and null as on a command
        line.
    """
    flat = {name: _flat(point) for name, point in points.items()}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    texts = {k: {repr(values.get(k, ...)) for values in flat.values()} for k in keys}
    differ = [key for key in keys if len(texts[key]) > 1] or list(keys)
    return {
        name: {key: values[key] for key in differ if key in values}
        for name, values in flat.items()
    }


def _flat(point: Point) -> Flags:
    return {
        f"{stage}.{flag}": value
        if isinstance(value, str | int | float)
        else as_flag(flag, value)
        for stage, flags in point.items()
        for flag, value in flags.items()
    }
