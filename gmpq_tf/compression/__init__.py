"""Compress a float model to a verified file within a budget, without training."""

from gmpq_tf.compression.corrections import CORRECTIONS as CORRECTIONS
from gmpq_tf.compression.corrections import Correction as Correction
from gmpq_tf.compression.corrections import make_student as make_student
from gmpq_tf.compression.space import suited_space as suited_space
from gmpq_tf.compression.whole import Compressed as Compressed
from gmpq_tf.compression.whole import compress as compress
