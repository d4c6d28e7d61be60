"""Better quantized models without training on labels.

    model, report = equalize(model)                  # before quantize_model
    correct_biases(student, model, images)           # last, before snap_biases

Ranges are a matter of `calibrate(student, images, method=...)`.
"""

from gmpq_tf.post_training.bias_correction import correct_biases as correct_biases
from gmpq_tf.post_training.equalization import Equalization as Equalization
from gmpq_tf.post_training.equalization import equalize as equalize
