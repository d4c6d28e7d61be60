"""Command lines: pretrain, search, finetune, evaluate, report, demo."""
