"""The grid of sigmoids, the only one that TFLite's integer kernels write them on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from gmpq_tf.quantizers import InputQuantizer

UNIT_STEP = 2.0**-8
FIXED = {"bits": 8, "signed": False, "power_of_two": True, "learn_range": False}


@keras.saving.register_keras_serializable("gmpq_tf")
class UnitQuantizer(InputQuantizer):
    """Quantizes values from 0 to 1 to `c / 256`, `0 <= c <= 255`.

    Calibration and training leave the step as it is.

    Args:
        **kwargs: of `InputQuantizer`; bits, sign and step are fixed.
    """

    graph_kind = "InputQuantizer"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**(kwargs | FIXED))

    def set_branches(self, grids: Mapping[int, tuple[float, int]]) -> None:
        """Sets the steps to 1/256, whatever the data suggest."""
        super().set_branches(dict.fromkeys(grids, (UNIT_STEP, 0)))
