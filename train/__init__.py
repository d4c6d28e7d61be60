"""Command lines: pretrain, search, finetune, evaluate, report, demo."""

import os

# TensorFlow's greetings would hide the progress bars; it reads this when imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
