"""Command lines: pretrain, search, finetune, evaluate, report, demo."""

import os
import signal
import sys

# TensorFlow's greetings would hide the progress bars; it reads this when imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if sys.argv[:1] == ["-m"] and (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    # Run as a command: Ctrl-C while Python still imports needs no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
