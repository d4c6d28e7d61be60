"""What the outputs of a model say: classes, yes or no, or plain numbers."""

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
