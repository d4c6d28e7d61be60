"""How stored pixels (0..255) become the numbers that a model reads."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.data.errors import DataError
from gmpq_tf.spelling import suggest

# Each kind: model_input = (pixel / 255 - mean) / std.
_FIXED_MEAN_STD = {
    "0..255": (0.0, 1.0 / 255.0),
    "0..1": (0.0, 1.0),
    "-1..1": (0.5, 0.5),
    "as_stored": (0.0, 1.0 / 255.0),
}
AS_STORED = "as_stored"  # for numbers that are not pixels
SCALING_KINDS = (*_FIXED_MEAN_STD, "mean_std")


@dataclasses.dataclass(frozen=True)
class InputScaling:
    """The affine map from stored pixels to model inputs.

    Args:
        kind: `"0..255"`, `"0..1"`, `"-1..1"` or `"mean_std"`.
        mean: Mean of each channel, pixels in 0..1. Only with `"mean_std"`.
        std: Standard deviation of each channel, pixels in 0..1, positive. Only with
            `"mean_std"`.

    Raises:
        DataError: The kind is unknown, or mean and std do not suit it.
    """

    kind: str = "0..1"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _check_kind(self.kind)
        for field in ("mean", "std"):
            object.__setattr__(self, field, _as_floats(field, getattr(self, field)))
        if self.kind == "mean_std":
            _check_mean_std(self.mean, self.std)
        elif self.mean is not None or self.std is not None:
            raise DataError(
                "`mean` and `std` are used only with scaling='mean_std'. "
                f"Received: scaling={self.kind!r}, mean={self.mean}, std={self.std}. "
                "Drop them, or choose scaling='mean_std'."
            )

    def to_config(self) -> dict[str, Any]:
        """Returns the scaling as a dict of plain JSON types."""
        listed = {"mean": self.mean, "std": self.std}
        return {"kind": self.kind} | {
            key: None if value is None else list(value) for key, value in listed.items()
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "InputScaling":
        """Returns the scaling that `to_config` described.

        Args:
            config: The keys `kind`, `mean` and `std`; the last two may be absent.

        Raises:
            DataError: A key is unknown or a value is out of range.
        """
        unknown = set(config) - {"kind", "mean", "std"}
        if unknown:
            raise DataError(
                "An input scaling has only the keys 'kind', 'mean' and 'std'. "
                f"Received: {sorted(unknown)}. Remove them."
            )
        return cls(**config)


def pixel_affine(scaling: InputScaling) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and offset such that `model_input = pixel * scale + offset`.

    Args:
        scaling: The input scaling.

    Returns:
        Two float32 arrays [C] with `"mean_std"`, [1] (all channels alike) otherwise.
    """
    if scaling.kind == "mean_std":
        mean, std = np.array(scaling.mean), np.array(scaling.std)
    else:
        mean, std = (np.array([x]) for x in _FIXED_MEAN_STD[scaling.kind])
    return (1.0 / (255.0 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def scale_images(images: Any, scaling: InputScaling) -> tf.Tensor:
    """Turns stored pixels into model inputs.

    Args:
        images: Pixels in 0..255, any numeric type, `[..., channels]`.
        scaling: The input scaling.

    Returns:
        A float32 tensor of the same shape.
    """
    scale, offset = pixel_affine(scaling)
    return tf.cast(images, tf.float32) * scale + offset


def _check_kind(kind: str) -> None:
    if kind not in SCALING_KINDS:
        raise DataError(
            f"`scaling` must be one of {', '.join(map(repr, SCALING_KINDS))}. "
            f"Received: scaling={kind!r}. {suggest(str(kind), SCALING_KINDS)}"
        )


def _as_floats(field: str, values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"`{field}` must be a sequence of numbers, one a channel. "
            f"Received: {field}={values!r}. Give such as (0.49, 0.48, 0.45)."
        ) from error


def _check_mean_std(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> None:
    usable = mean and std and len(mean) == len(std)
    usable = usable and all(0 <= m <= 1 for m in mean or ())
    if not usable or not all(s > 0 and math.isfinite(s) for s in std or ()):
        raise DataError(
            "scaling='mean_std' needs `mean` in 0..1 and `std` above 0 for each "
            f"channel, of pixels divided by 255. Received: mean={mean}, std={std}. "
            "Divide by 255 what was measured in 0..255."
        )
