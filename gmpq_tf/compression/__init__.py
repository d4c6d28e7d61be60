"""A float model and images in, a verified file within a budget out; no training."""

from gmpq_tf.compression.corrections import CORRECTIONS as CORRECTIONS
from gmpq_tf.compression.corrections import Correction as Correction
from gmpq_tf.compression.corrections import make_student as make_student
from gmpq_tf.compression.space import suited_space as suited_space
from gmpq_tf.compression.whole import Compressed as Compressed
from gmpq_tf.compression.whole import compress as compress
