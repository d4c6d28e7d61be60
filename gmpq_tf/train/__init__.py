"""The commands of training and measuring, one module each; see docs/ for their use."""

import os
import signal
import sys

# TensorFlow's start-up messages would break the progress bars; TensorFlow reads this
# variable when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if sys.argv[:1] == ["-m"] and (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    # Run as a command: Ctrl-C during the imports should print no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
