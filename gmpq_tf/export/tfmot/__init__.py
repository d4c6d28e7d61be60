"""The quantized model as a tf_keras model for users of TFMOT, and the way back.

    model = quantize_apply(student, policy)   # tf_keras, wrapped by TFMOT
    model.compile(...); model.fit(...)        # with TFMOT's callbacks, Keras 2 code
    export_tflite(model, "model.tflite", verify_data=images)

TFMOT supports only Keras 2 models (package tf_keras), and its export uses a converter
that changes the grids of most widths below 8. So here the wrappers are TFMOT's, but the
quantizers are ours (`fake_quantizers`), and a model is exported by converting it back
to a Keras 3 student and calling the writer of `export_tflite`.

`pip install gmpq-tf[tfmot]` installs both packages; they are imported when first used.
"""

from gmpq_tf.export.tfmot.convert import (
    export_tflite,
    quantize_apply,
    quantize_configs,
    to_student,
    to_tf_keras,
)
from gmpq_tf.export.tfmot.files import load_model, write_tfmot
from gmpq_tf.export.tfmot.libraries import quantize_scope

__all__ = [
    "export_tflite",
    "load_model",
    "quantize_apply",
    "quantize_configs",
    "quantize_scope",
    "to_student",
    "to_tf_keras",
    "write_tfmot",
]
