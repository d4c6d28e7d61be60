"""Better quantized models without training on labels.

    student = gmpq.quantize_model(model, policy)
    refine(student, model, images)                   # all in one, ready to export

or step by step, in this order:

    model, report = equalize(model)                  # before quantize_model
    gmpq.calibrate(student, images, method=...)
    match_statistics(student, model, images)         # or correct_biases
    learn_blocks(student, model, images)             # or learn_rounding
    gmpq.snap_biases(student)                        # last, without images
"""

from gmpq_tf.post_training.bias_correction import correct_biases as correct_biases
from gmpq_tf.post_training.equalization import Equalization as Equalization
from gmpq_tf.post_training.equalization import equalize as equalize
from gmpq_tf.post_training.open_block import Learned as Learned
from gmpq_tf.post_training.open_layer import BlockConfig as BlockConfig
from gmpq_tf.post_training.reconstruction import learn_blocks as learn_blocks
from gmpq_tf.post_training.refine import RefineConfig as RefineConfig
from gmpq_tf.post_training.refine import Refined as Refined
from gmpq_tf.post_training.refine import refine as refine
from gmpq_tf.post_training.rounding import Rounding as Rounding
from gmpq_tf.post_training.rounding import learn_rounding as learn_rounding
from gmpq_tf.post_training.statistics import Matched as Matched
from gmpq_tf.post_training.statistics import match_statistics as match_statistics
