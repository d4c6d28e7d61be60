"""The quantized model as a tf_keras model for users of TFMOT, and the way back.

    model = quantize_apply(student, policy)   # tf_keras, wrapped by TFMOT
    model.compile(...); model.fit(...)        # with TFMOT's callbacks, Keras 2 code
    export_tflite(model, "model.tflite", verify_data=images)

TFMOT works on Keras 2 models only, which the package tf_keras holds, and leaves the
bits to a converter that changes the grids of most widths below 8. So the wrappers are
TFMOT's and the quantizers ours (`fake_quantizers`), and the way to TFLite leads through
the Keras 3 student and the writer of `export_tflite`.

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
