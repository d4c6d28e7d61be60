"""Doors of the command lines: `python -m train.search` in a checkout."""

import gmpq_tf.train  # noqa: F401  Ctrl-C while the rest is imported: no traceback
