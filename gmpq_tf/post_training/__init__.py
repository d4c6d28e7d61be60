"""Better quantized models without training on labels.

    model, report = equalize(model)                  # before quantize_model
    learn_rounding(student, model, images)           # after calibrate
    correct_biases(student, model, images)           # last, before snap_biases

Ranges are a matter of `calibrate(student, images, method=...)`.
"""

from gmpq_tf.post_training.bias_correction import correct_biases as correct_biases
from gmpq_tf.post_training.equalization import Equalization as Equalization
from gmpq_tf.post_training.equalization import equalize as equalize
from gmpq_tf.post_training.rounding import Rounding as Rounding
from gmpq_tf.post_training.rounding import learn_rounding as learn_rounding
