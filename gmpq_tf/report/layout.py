"""Names of the files that the stages of a run leave in its workdir."""

SUMMARY = "summary.json"
COST = "cost.json"
ATTRIBUTION = "attribution.npz"
METRICS = "metrics.jsonl"  # in the folder of each training
POLICY = "policy.json"  # in the folder of each search and fine-tuning
IMPORTANCES = "importances.json"  # in the folder of the search
EPOCH_IMPORTANCES = "importances.jsonl"  # likewise, of each epoch, with --tensorboard
TENSORBOARD = "tensorboard"  # folder of its events, in that of each stage
VALUES = "values.json"  # likewise
JOURNAL = "journal.jsonl"  # likewise, of what is measured
PRUNED = "pruned.keras"  # likewise, the float model where channels were removed
SEARCHED_POLICY = f"search/{POLICY}"
