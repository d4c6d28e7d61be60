"""Keep weight decay off what quantizers learn.

Steps and ranges are learned as logarithms: a pull towards zero is a pull of the step
towards one, up or down, whatever the weights need. So optimizers spare them by default,
in every training loop, as they spare what `exclude_from_weight_decay` names. That
method itself must be called on each optimizer before it is built, and forgets earlier
calls; users call it for their own variables.
"""

from __future__ import annotations

import functools
import re
from typing import Any

LEARNED = re.compile(r"log2_(step|range)")  # in the names of the variables
DECAYS = "decays_quantizers"


def spare_quantizers(optimizers: type) -> None:
    """Make a class of optimizers spare the steps and ranges of quantizers.

    Args:
        optimizers: base class of Keras's or tf_keras's optimizers. An optimizer whose
            attribute `decays_quantizers` is True decays them all the same.
    """
    uses: Any = optimizers._use_weight_decay  # type: ignore[attr-defined]
    if hasattr(uses, DECAYS):
        return

    @functools.wraps(uses)
    def uses_weight_decay(self: Any, variable: Any) -> bool:
        if LEARNED.search(variable.name) and not getattr(self, DECAYS, False):
            return False
        return uses(self, variable)

    setattr(uses_weight_decay, DECAYS, False)
    optimizers._use_weight_decay = uses_weight_decay  # type: ignore[attr-defined]
