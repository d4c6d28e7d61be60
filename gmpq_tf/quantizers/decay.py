"""Keeps weight decay off the learned steps and ranges of quantizers.

Steps and ranges are learned as logarithms. Decay of a logarithm towards 0 would pull
the step towards 1, whatever the weights need. So optimizers apply no weight decay to
these variables by default. `exclude_from_weight_decay` of Keras cannot be used for
that: a call by the user would replace ours.
"""

from __future__ import annotations

import functools
import re
from typing import Any

LEARNED = re.compile(r"log2_(step|range)")  # in the names of the variables
DECAYS = "decays_quantizers"


def spare_quantizers(optimizers: type) -> None:
    """Makes optimizers apply no weight decay to the steps and ranges of quantizers.

    Args:
        optimizers: base class of Keras's or tf_keras's optimizers. An optimizer whose
            attribute `decays_quantizers` is True applies weight decay to them too.
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
