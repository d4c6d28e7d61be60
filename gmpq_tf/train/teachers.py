"""The models that students follow in distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from gmpq_tf.models import load_model
from gmpq_tf.models.file_checks import check_model_path, expand_user
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.records import fingerprint, read_record
from gmpq_tf.train.inputs import PRETRAINED


def whole_model(pruned: Path) -> str:
    """Finds the float model that a search has pruned, the teacher of its students.

    Args:
        pruned: file of the pruned model in the folder of the search.

    Returns:
        The path of the whole model: the recorded one, or the one in the same workdir.

    Raises:
        StageError: neither file exists with the recorded content.
    """
    workdir = pruned.parent.parent
    record = workdir / "config" / f"{pruned.parent.name}.json"
    known = read_record(record)["config"].get("model", {}) if record.is_file() else {}
    for path in (Path(known.get("path", "")), workdir / PRETRAINED):
        if path.is_file() and fingerprint(path) == known.get("sha256"):
            return str(path)
    raise StageError(
        "Students of a pruned model follow the whole one. "
        f"Received: {pruned}, and no {known.get('path', 'record of the search')}. Name "
        "it with --teacher, or train without it: --distillation=0."
    )


def read_teacher(path: str | None, model: keras.Model) -> keras.Model:
    """Returns the model that distillation follows.

    Args:
        path: a .keras or .h5 file; None: the float model itself.
        model: the float model, of which the student is made.

    Returns:
        A model of the same inputs and classes.

    Raises:
        ValueError: the file is unreadable, or its inputs or classes differ.
    """
    if path is None:
        return model
    check_model_path(expand_user(path))
    teacher = load_model(expand_user(path))
    for what, own, wanted in (
        ("inputs", teacher.input_shape, model.input_shape),
        ("outputs", teacher.output_shape, model.output_shape),
    ):
        if not _agree(own, wanted):
            raise StageError(
                f"A teacher must have the {what} of the float model, {wanted}. "
                f"Received: teacher={path!r} with {own}. Name a model of the same "
                "images and classes, or leave --teacher out."
            )
    return teacher


def _agree(own: Any, wanted: Any) -> bool:
    """Whether two structures of shapes are compatible; None stands for any size."""
    mine, its = keras.tree.flatten(own), keras.tree.flatten(wanted)
    same = len(mine) == len(its)
    return same and all(
        a is None or b is None or a == b for a, b in zip(mine, its, strict=True)
    )
