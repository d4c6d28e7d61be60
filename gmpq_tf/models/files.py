"""Loads models by name or from files, without running code that a file holds."""

from pathlib import Path
from typing import Any

import keras

from gmpq_tf.models.builtin import MODELS, build_model
from gmpq_tf.models.file_checks import (
    ModelFileError,
    check_hdf5,
    check_model_path,
    check_size,
    check_zip,
    expand_user,
    lambda_layers,
    read_config,
    unknown_module,
)
from gmpq_tf.models.foreign.keras2 import readable


def load_model(
    name_or_path: str | Path,
    input_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> keras.Model:
    """Builds a built-in model, or reads one from a file without running its code.

    Args:
        name_or_path: A name in `MODELS`, or the path of a `.keras` or `.h5` file.
        input_shape: Height, width, channels; needed with a name.
        num_classes: Number of outputs; needed with a name.
        **options: Arguments of a built-in model's own function.

    Returns:
        The model, not compiled.

    Raises:
        ModelFileError: The file is missing, truncated, of another kind, or carries
            Python code.
        ValueError: A built-in name comes without input_shape or num_classes.
    """
    name = str(name_or_path)
    if name not in MODELS:
        return _read_model(expand_user(name))
    if input_shape is None or num_classes is None:
        raise ValueError(
            "A built-in model needs `input_shape` and `num_classes`. Received: "
            f"name_or_path={name!r}, input_shape={input_shape}, "
            f"num_classes={num_classes}. Give both, such as (32, 32, 3) and 10."
        )
    return build_model(name, input_shape, num_classes, **options)


def _read_model(path: Path) -> keras.Model:
    check_model_path(path, MODELS)
    try:
        config = _checked_config(path)
        with readable(path, config) as source:
            check_size(path, config, source)
            return keras.models.load_model(source, compile=False, safe_mode=True)
    except ModelFileError:
        raise
    except Exception as error:  # Keras, h5py and zipfile raise errors of many kinds.
        cause = str(error).rsplit("Exception encountered:", 1)[-1]
        cause = " ".join(cause.split())[:200]
        raise ModelFileError(
            "A model file must be one that Keras wrote, whole. "
            f"Received: {path} ({type(error).__name__}: {cause}). Save it again with "
            "model.save('model.keras'); import the modules of its custom layers first."
        ) from error


def _checked_config(path: Path) -> Any:
    """Returns the configuration of a file after checking that loading it runs no code.

    Keras's safe mode refuses most such files, but not in every version and format.
    """
    is_zip = path.suffix == ".keras"
    (check_zip if is_zip else check_hdf5)(path)  # Before the configuration is read.
    config = read_config(path)
    _refuse_code(path, config)
    if is_zip:
        check_hdf5(path)
    return config


def _refuse_code(path: Path, config: Any) -> None:
    if names := lambda_layers(config):
        raise ModelFileError(
            "A model file must hold no Python code. "
            f"Received: {path}, which has a Lambda layer or function: "
            f"{', '.join(map(repr, names))}. Build the model anew with a layer of "
            "Keras's own in its place (Rescaling for x / 127.5 - 1, Activation, "
            "Reshape), copy the weights with new.set_weights(old.get_weights()) and "
            "save it again."
        )
    module = unknown_module(config)
    if module is not None:
        raise ModelFileError(
            "The modules of a model's custom layers must have been imported. "
            f"Received: {path}, which names {module[:80]!r}. Import it first."
        )
