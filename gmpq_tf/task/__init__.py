"""The meaning of a model's outputs: classes, yes or no, numbers or boxes."""

from gmpq_tf.task.kinds import (
    KINDS,
    Binary,
    Classes,
    Numbers,
    OutputKind,
    TaskError,
)
from gmpq_tf.task.outputs import Output, classifier_kind, match_labels, outputs_of

__all__ = [
    "KINDS",
    "Binary",
    "Classes",
    "Numbers",
    "Output",
    "OutputKind",
    "TaskError",
    "classifier_kind",
    "match_labels",
    "outputs_of",
]
