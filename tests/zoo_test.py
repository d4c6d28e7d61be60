"""Networks of keras.applications, from the float model to the file."""

import keras
import numpy as np
import pytest
from keras import applications

import gmpq_tf as gmpq
from gmpq_tf.export.tflite.exporter import export_tflite
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.graph import searchable_names

CLASSES, BUDGET = 4, 0.011
# Network -> image size, and the largest pixel value it takes (least is minus that, or
# 0 where pixels are scaled inside).
ZOO = {
    "DenseNet121": (32, 1),
    "EfficientNetB0": (32, 255),
    "EfficientNetV2B0": (32, 255),
    "InceptionV3": (75, 1),
    "MobileNet": (32, 1),
    "MobileNetV2": (32, 1),
    "MobileNetV3Large": (32, 255),
    "MobileNetV3Small": (32, 255),
    "NASNetMobile": (32, 1),
    "ResNet50V2": (32, 1),
    "VGG19": (32, 1),
    "Xception": (71, 1),
}
# What the files compute in float: nothing but the scores' softmax, and both ends.
ENDS = 4


def network(name):
    """The network with random kernels, and with the statistics of random images."""
    size = ZOO[name][0]
    build = getattr(applications, name)
    model = build(weights=None, input_shape=(size, size, 3), classes=CLASSES)
    x = images(name, 8)
    norms = [n for n in model.layers if isinstance(n, keras.layers.BatchNormalization)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(x, training=True)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    return model, x


def images(name, count, seed=0):
    """Noise whose color differs from image to image."""
    size, largest = ZOO[name]
    random = np.random.default_rng(seed)
    color = random.uniform(0, 1, (count, 1, 1, 3))
    x = (color + random.uniform(0, 1, (count, size, size, 3))) / 2
    low = 0 if largest == 255 else -largest
    return (low + x * (largest - low)).astype("float32")


def sgd(rate):
    return keras.optimizers.SGD(rate, clipnorm=1.0)


@pytest.mark.large
@pytest.mark.parametrize("name", sorted(ZOO))
def test_application_is_searched_fine_tuned_and_exported(name, tmp_path):
    """One step of each stage. The export itself compares every layer with Keras.

    Of 2-bit networks with random kernels the scores are close, and what few codes are
    a step off decides some images; hence the low `least_agreement`.
    """
    model, x = network(name)
    y, loss = np.arange(8) % CLASSES, "sparse_categorical_crossentropy"
    search = gmpq.PolicySearch(model, bit_ops_budget=BUDGET)
    # Tracing so many quantizers takes longer than two steps.
    search.compile(sgd(1e-3), sgd(1e-2), loss=loss, run_eagerly=True)
    history = search.fit(x[:4], y[:4], batch_size=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    policy = search.policy()
    assert list(policy) == searchable_names(model)
    assert gmpq.count_cost(model, policy).bit_ops <= search.budget

    student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, [(x,)])
    student.compile(sgd(1e-4), loss, run_eagerly=True)
    student.fit(x[:4], y[:4], batch_size=4, verbose=0)
    gmpq.snap_biases(student)
    path = tmp_path / "model.tflite"
    report = export_tflite(
        student,
        path,
        verify_data=images(name, 16, seed=1),
        least_agreement=0.5,
        latency_runs=0,
    )
    assert {layer.name for layer in report.layers} == set(policy)
    assert all(layer.output_agreement > 0.95 for layer in report.layers)
    assert len(float_tensors(path)) <= ENDS


def float_tensors(path):
    """Names of the tensors that a file holds in float, asked of the runtime."""
    details = TFLiteModel(path, use_xnnpack=False).interpreter.get_tensor_details()
    return [d["name"] for d in details if d["dtype"] == np.float32]
