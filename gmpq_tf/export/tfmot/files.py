"""Saves and loads tf_keras models with our quantizers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras

from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tfmot.convert import quantize_apply
from gmpq_tf.export.tfmot.libraries import libraries, quantize_scope
from gmpq_tf.files import replace_file
from gmpq_tf.models.file_checks import check_hdf5, has_lambda, read_config
from gmpq_tf.policy import BitwidthPolicy

SUFFIXES = (".h5", ".keras")


def write_tfmot(
    student: keras.Model, policy: BitwidthPolicy, path: str | os.PathLike[str]
) -> Path:
    """Saves the result of `quantize_apply`; `load_model` reads the file.

    Args:
        student: as for `quantize_apply`.
        policy: as for `quantize_apply`.
        path: the `.h5` or `.keras` file to create or to replace, atomically.

    Returns:
        The path written.

    Raises:
        ExportError: as for `quantize_apply`; or the path cannot be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ExportError(
            f"A tf_keras file must end in {' or '.join(SUFFIXES)}. "
            f"Received: path={str(path)!r}. Rename it."
        )
    model = quantize_apply(student, policy)
    try:
        with replace_file(path) as temporary:
            model.save(temporary)
    except OSError as error:
        raise ExportError(
            "The path must be writable. "
            f"Received: path={str(path)!r} ({error}). Choose another folder."
        ) from error
    return path


def load_model(path: str | os.PathLike[str], compile: bool = True) -> Any:
    """Loads a model that `quantize_apply` made and tf_keras saved.

    Args:
        path: `.h5` or `.keras` file.
        compile: whether to restore the optimizer and the loss.

    Returns:
        The `tf_keras.Model`.

    Raises:
        ExportError: TFMOT or tf_keras is missing, the file is not such a model, or it
            holds Python code.
    """
    models = libraries().tf_keras.models
    try:
        _refuse_code(Path(path))
        with quantize_scope():
            model = models.load_model(Path(path), compile=compile)
    except (OSError, ValueError, TypeError) as error:
        raise ExportError(
            "The file must be a tf_keras model with the quantizers of gmpq_tf. "
            f"Received: path={str(path)!r} ({str(error)[:200]}). Pass what "
            "write_tfmot wrote."
        ) from error
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.fused = False  # tf_keras does not save this attribute
    return model


def _refuse_code(path: Path) -> None:
    """Refuses an `.h5` file with a Lambda layer, which tf_keras does not check."""
    if path.suffix == ".h5":
        check_hdf5(path)
        if has_lambda(read_config(path)):
            raise ValueError("it has a Lambda layer, whose Python code would be run")
