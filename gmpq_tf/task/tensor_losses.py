"""Losses for tensors, by Keras's names, adapted to a model's last activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import keras

from gmpq_tf.spelling import suggest
from gmpq_tf.task.kinds import TaskError
from gmpq_tf.task.targets import Target

_L = keras.losses


@dataclass(frozen=True)
class LossKind:
    """A loss, and the outputs that it takes.

    Args:
        make: its class.
        reads: "numbers": any; "logits": logits or, after a softmax or sigmoid,
            probabilities, by the argument `from_logits`; "probabilities": only these.
    """

    make: type
    reads: Literal["numbers", "logits", "probabilities"] = "numbers"


# Names as in `keras.losses`.
LOSSES: dict[str, LossKind] = {
    "mean_squared_error": LossKind(_L.MeanSquaredError),
    "mean_absolute_error": LossKind(_L.MeanAbsoluteError),
    "mean_absolute_percentage_error": LossKind(_L.MeanAbsolutePercentageError),
    "mean_squared_logarithmic_error": LossKind(_L.MeanSquaredLogarithmicError),
    "huber": LossKind(_L.Huber),
    "log_cosh": LossKind(_L.LogCosh),
    "poisson": LossKind(_L.Poisson),
    "cosine_similarity": LossKind(_L.CosineSimilarity),
    "hinge": LossKind(_L.Hinge),
    "squared_hinge": LossKind(_L.SquaredHinge),
    "binary_crossentropy": LossKind(_L.BinaryCrossentropy, "logits"),
    "binary_focal_crossentropy": LossKind(_L.BinaryFocalCrossentropy, "logits"),
    "categorical_crossentropy": LossKind(_L.CategoricalCrossentropy, "logits"),
    "sparse_categorical_crossentropy": LossKind(
        _L.SparseCategoricalCrossentropy, "logits"
    ),
    "kl_divergence": LossKind(_L.KLDivergence, "probabilities"),
    "dice": LossKind(_L.Dice, "probabilities"),
    "tversky": LossKind(_L.Tversky, "probabilities"),
}
SHORT = {
    "mse": "mean_squared_error",
    "mae": "mean_absolute_error",
    "mape": "mean_absolute_percentage_error",
    "msle": "mean_squared_logarithmic_error",
    "bce": "binary_crossentropy",
    "kld": "kl_divergence",
    "logcosh": "log_cosh",
}
_OF_CLASSES = "sparse_categorical_crossentropy"


def named_loss(name: str) -> str:
    """Returns the name in `LOSSES` for a name such as `mse` or `MeanSquaredError`.

    Raises:
        TaskError: there is no such loss.
    """
    given = name.strip()
    plain = {each.replace("_", ""): each for each in LOSSES}
    found = SHORT.get(given.lower()) or plain.get(given.lower().replace("_", ""))
    if found is None:
        known = [*SHORT, *LOSSES]
        raise TaskError(
            "A loss must be one of Keras's, by its name. "
            f"Received: loss={name!r:.80}. {suggest(given, known)}"
        )
    return found


def check_losses(text: str) -> dict[str, str]:
    """Returns output -> loss for the text of a flag; the key "" is for all outputs.

    Args:
        text: such as `mse`, or `image=mse,label=sparse_categorical_crossentropy`.

    Raises:
        TaskError: a loss does not exist, or an output occurs twice.
    """
    if "=" not in text:
        return {"": named_loss(text)}
    found: dict[str, str] = {}
    for part in text.split(","):
        output, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals or not output or output in found:
            raise TaskError(
                "Losses of several outputs must be given as OUTPUT=LOSS, each output "
                f"once. Received: loss={text!r:.80}. Write such as a=mse,b=mae."
            )
        found[output] = named_loss(name)
    return found


def sensible_loss(shape: tuple, ending: str, target: Target, name: str) -> str:
    """Returns the loss of an output, if only one is sensible.

    Args:
        shape: shape of the output for one example.
        ending: the output's last activation: "linear", "softmax", "sigmoid".
        target: the targets of the output.
        name: name of the output, for the error.

    Raises:
        TaskError: several losses are possible.
    """
    classes = target.whole and shape[:-1] == target.shape and shape[-1] != 1
    if classes:
        return _OF_CLASSES
    if not target.whole:
        return "mean_squared_error"
    two = target.low is not None and target.low >= 0 and (target.high or 0) <= 1
    if two and (ending == "sigmoid" or shape[-1] == 1):
        return "binary_crossentropy"
    raise TaskError(
        "Whole numbers may be classes or amounts, so the loss must be said. Received: "
        f"loss=None, output {name!r} of {shape} for whole numbers of {target.shape}. "
        "Give --loss=mse for amounts, or such as binary_crossentropy."
    )


def make_tensor_loss(name: str, ending: str, output: str) -> keras.losses.Loss:
    """Makes a loss for the output's kind: logits, probabilities or numbers.

    Args:
        name: a name in `LOSSES`.
        ending: the output's last activation.
        output: name of the output, for the error.

    Raises:
        TaskError: the loss needs probabilities, and the output does not give them.
    """
    row = LOSSES[name]
    if row.reads == "numbers":
        return row.make()
    probabilities = ending in ("softmax", "sigmoid")
    if row.reads == "logits":
        return row.make(from_logits=not probabilities)
    if not probabilities:
        raise TaskError(
            f"loss={name!r} takes probabilities. Received: output {output!r}, which "
            "ends in neither softmax nor sigmoid. End it with one, or choose a "
            "crossentropy, which takes logits."
        )
    return row.make()
