import functools
import importlib.util
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.export import tfmot
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.integers.fold import trained_codes
from gmpq_tf.export.tflite.lowering import LOWERINGS
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.export.tfmot import convert
from gmpq_tf.export.tfmot.fake_quantizers import (
    InputFakeQuantizer,
    KernelFakeQuantizer,
)
from gmpq_tf.export.tfmot.libraries import libraries
from gmpq_tf.export.tfmot.quantize_config import PolicyQuantizeConfig
from gmpq_tf.export.tfmot.translate import ARGUMENTS, OPERATIONS
from gmpq_tf.graph import searchable_names
from gmpq_tf.kernel_kinds import KERNEL_KINDS
from gmpq_tf.policy import BitwidthPolicy, PolicyError
from gmpq_tf.transform import calibrate, quantize_model
from gmpq_tf.transform.calibrate import input_quantizers, is_calibrated
from tests.export.nets import NETS, images, randomize

PACKAGES = ("tensorflow_model_optimization", "tf_keras")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"the extra `tfmot` is not installed: no {MISSING}"
)
L = keras.layers


@pytest.fixture(scope="module")
def library():
    return libraries()


def mixed_policy(model):
    """Every width from 2 to 8, for weights and for activations."""
    layers = {
        name: (2 + i % 7, 2 + (i + 3) % 7)
        for i, name in enumerate(searchable_names(model))
    }
    return BitwidthPolicy(model.name, layers)


def student_of(model, policy, **options):
    student = quantize_model(model, policy, **options)
    calibrate(student, [(images(model),)])
    return student


def prepared(net):
    """(float model, policy, calibrated student) of a small network."""
    keras.utils.set_random_seed(0)
    model = randomize(NETS[net](), 0)
    policy = mixed_policy(model)
    return model, policy, student_of(model, policy)


@functools.cache
def kept(net):
    """As `prepared`, for tests that change nothing."""
    return prepared(net)


def run(model, x):
    return [np.asarray(v) for v in keras.tree.flatten(model(x, training=False))]


def assert_equal_outputs(first, second, x, tolerance):
    for a, b in zip(run(first, x), run(second, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def fit(model, library, epochs=1, count=48, eager=True):
    """A few steps of tf_keras training on random labels; compiling takes longer."""
    x = images(model, count, seed=5)
    y = np.random.default_rng(6).integers(0, 5, count)
    optimizer = library.tf_keras.optimizers.Adam(1e-3)
    model.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=eager)
    return model.fit(x, y, batch_size=16, epochs=epochs, verbose=0)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("net", NETS)
def test_tf_keras_computes_what_keras_3_does(net):
    model, policy, student = kept(net)
    x = images(model, 64, seed=2)
    assert_equal_outputs(tfmot.to_tf_keras(model), model, x, 1e-5)
    assert_equal_outputs(tfmot.quantize_apply(student, policy), student, x, 1e-4)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("bits", "methods"),
    [(2, ("lsq", "lsq")), (5, ("pact", "max_abs")), (8, ("lsq", "max_abs"))],
)
def test_uniform_widths_and_methods(bits, methods):
    model = randomize(NETS["inverted"](), 1)
    policy = BitwidthPolicy.uniform(model, bits, bits, pinned={})
    student = student_of(
        model, policy, input_quantizer=methods[0], kernel_quantizer=methods[1]
    )
    quantized = tfmot.quantize_apply(student, policy)
    assert_equal_outputs(quantized, student, images(model, 32, seed=2), 1e-4)


def test_wrappers_are_those_of_tfmot(library):
    _, policy, student = kept("residual")
    quantized = tfmot.quantize_apply(student, policy)
    assert isinstance(quantized, library.tf_keras.Model)
    for name, bits in policy.items():
        wrapper = quantized.get_layer(f"quant_{name}")
        assert isinstance(wrapper, library.tfmot.QuantizeWrapperV2)
        config = wrapper.quantize_config
        assert isinstance(config, library.tfmot.QuantizeConfig)
        for quantizer in (config.kernel_quantizer, config.input_quantizer):
            assert isinstance(quantizer, library.tfmot.quantizers.Quantizer)
        assert config.kernel_quantizer.bits == bits.weight_bits
        assert config.input_quantizer.bits == bits.activation_bits


def grid_values(x, step, low, high, half_up):
    scaled = np.clip(x / step, low, high)
    return (np.floor(scaled + 0.5) if half_up else np.round(scaled)) * step


# Products and scaling by constants, as in squeeze-excite: TFLite only.
REFUSED = {"Multiply", "Normalization", "Subtract", "Divide", "TrueDivide"}
# TFLite only, too.
REFUSED |= {"LeakyReLU", "LeakyRelu", "PReLU", "Average"}
REFUSED |= {name for name, row in KERNEL_KINDS.items() if row.arguments is None}


class Owner:
    """Stands for the tf_keras layer that owns a quantizer's variables."""

    def add_weight(self, name, shape, dtype, initializer, trainable):
        return tf.Variable(initializer(shape, dtype), trainable=trainable, name=name)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False, None])
@pytest.mark.parametrize("nested", [True, False])
def test_activations_against_numpy(bits, signed, nested):
    x = np.random.default_rng(bits).normal(0.3, 1, (4, 50)).astype("float32")
    quantizer = InputFakeQuantizer(bits, signed, power_of_two=nested, first_batch=False)
    variables = quantizer.build(x.shape, "x", Owner())
    limit = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    zero = 1 if signed is None else 0
    step = 1.3 / limit
    variables["log2_range"].assign([np.log2(1.3)])
    variables["zero_code"].assign([zero])
    if nested:
        step = 2.0 ** np.round(np.log2(step))
    low = -limit - 1 if signed else -zero
    wanted = grid_values(x, step, low, limit - zero, half_up=True)
    received = quantizer(tf.constant(x), False, variables)
    np.testing.assert_allclose(received, wanted, rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.round(np.asarray(received) / step))) <= 2**bits


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("method", ["lsq", "max_abs"])
def test_kernels_against_numpy(bits, method):
    kernel = np.random.default_rng(bits).normal(size=(3, 3, 2, 5)).astype("float32")
    quantizer = KernelFakeQuantizer(bits, method, (0, 1, 2), first_batch=False)
    variables = quantizer.build(kernel.shape, "kernel", Owner())
    limit = 2 ** (bits - 1) - 1
    step = np.abs(kernel).max((0, 1, 2)) / limit
    if method == "lsq":
        step = step * np.float32(0.7)
        variables["log2_step"].assign(np.log2(step).reshape(1, 1, 1, 1, 5))
    wanted = grid_values(kernel, step, -limit, limit, half_up=False)
    received = quantizer(tf.constant(kernel), False, variables)
    np.testing.assert_allclose(received, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("signed", [True, False, None])
def test_the_first_training_batch_sets_the_range(signed):
    x = np.random.default_rng(0).normal(0.2, 2, (8, 500)).astype("float32")
    quantizer = InputFakeQuantizer(4, signed)
    variables = quantizer.build(x.shape, "x", Owner())
    before = quantizer(tf.constant(x), False, variables)
    assert float(variables["calibrated"]) == 0
    after = quantizer(tf.constant(x), True, variables)
    assert float(variables["calibrated"]) == 1
    np.testing.assert_array_equal(before, after)
    later = quantizer(tf.constant(10 * x), True, variables)
    assert np.abs(later).max() <= np.abs(after).max()
    clipped = x if signed is not False else np.maximum(x, 0)
    spread = np.abs(x).max() if signed else clipped.max() - clipped.min()
    widest = spread / (7 if signed else 15)  # of the grid that clips nothing
    assert np.mean((after - clipped) ** 2) <= widest**2 / 12 * 1.1


def test_configs_of_a_policy(library):
    model = NETS["inverted"]()
    policy = mixed_policy(model)
    configs = tfmot.quantize_configs(policy)
    assert list(configs) == list(policy)
    for name, config in configs.items():
        assert isinstance(config, library.tfmot.QuantizeConfig)
        assert config.kernel_quantizer.bits == policy[name].weight_bits
        assert config.input_quantizer.bits == policy[name].activation_bits
        text = json.dumps(config.get_config())
        again = PolicyQuantizeConfig.from_config(json.loads(text))
        assert again.get_config() == config.get_config()


def test_configs_annotate_a_model_of_the_user(library):
    """TFMOT's own quantize_apply takes them, and trains below 8 bits."""
    layers, annotate = library.tf_keras.layers, library.tfmot.quantize_annotate_layer
    bits = {"a": (2, 3), "b": (3, 2), "c": (4, 4)}
    configs = tfmot.quantize_configs(BitwidthPolicy("mine", bits))
    model = library.tf_keras.Sequential(
        [
            layers.InputLayer((8, 8, 3)),
            annotate(layers.Conv2D(6, 3, name="a"), configs["a"]),
            layers.ReLU(),
            annotate(layers.DepthwiseConv2D(3, name="b"), configs["b"]),
            layers.Flatten(),
            annotate(layers.Dense(5, activation="softmax", name="c"), configs["c"]),
        ]
    )
    with tfmot.quantize_scope():
        model = library.tfmot.quantize_apply(model)
    history = fit(model, library, epochs=4, eager=False).history["loss"]
    assert history[-1] < history[0]
    for name, (weight_bits, _) in bits.items():
        config = model.get_layer(f"quant_{name}").quantize_config
        assert float(config.input_quantizer.variables["calibrated"]) == 1
        quantizer = config.kernel_quantizer
        kernel = quantizer(config.kernel, False, quantizer.variables).numpy()
        # One step a channel; Dense has one in all.
        columns = kernel.reshape(-1, 1 if name == "c" else 6)
        assert max(len(np.unique(c)) for c in columns.T) <= 2**weight_bits - 1
    with pytest.raises(ExportError, match=r"must be one of gmpq_tf's"):
        tfmot.to_student(model)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("net", ["residual", "inverted"])
def test_one_step_of_training_is_that_of_the_student(net, library):
    model, policy, student = prepared(net)
    quantized = tfmot.quantize_apply(student, policy)
    x = images(model, 16, seed=3)
    y = np.random.default_rng(4).normal(size=(16, 5)).astype("float32")
    student.compile(keras.optimizers.SGD(0.05), "mse", run_eagerly=True)
    optimizer = library.tf_keras.optimizers.SGD(0.05)
    quantized.compile(optimizer, "mse", run_eagerly=True)
    for trained in (student, quantized):
        trained.fit(x, y, batch_size=16, verbose=0)
    again = tfmot.to_student(quantized)
    moved = 0
    for before, wanted, received in zip(
        kept(net)[2].weights, student.weights, again.weights, strict=True
    ):
        np.testing.assert_allclose(received, wanted, rtol=1e-4, atol=1e-5)
        moved += np.any(np.asarray(before) != np.asarray(wanted))
    assert moved > 30


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("net", ["plain", "inverted"])
def test_trained_model_exports_with_its_own_codes(tmp_path, net, library):
    model, policy, student = kept(net)
    quantized = tfmot.quantize_apply(student, policy)
    fit(quantized, library, epochs=2, eager=net == "inverted")
    x = images(model, 64, seed=7)
    report = tfmot.export_tflite(quantized, tmp_path / "m.tflite", verify_data=x)
    assert report.data == "given"
    assert report.agreement >= 0.95
    assert [layer.name for layer in report.layers] == list(policy)
    assert all(layer.codes_equal for layer in report.layers)
    trained = tfmot.to_student(quantized)
    for name in policy:
        config = quantized.get_layer(f"quant_{name}").quantize_config
        quantizer = config.kernel_quantizer
        values = quantizer(config.kernel, False, quantizer.variables).numpy()
        codes, _ = trained_codes(trained.get_layer(name))
        step = 2.0 ** quantizer.variables["log2_step"].numpy()[0]
        np.testing.assert_array_equal(np.round(values / step), codes)
        assert np.any(codes != trained_codes(student.get_layer(name))[0]) or (
            policy[name].weight_bits <= 3
        )
    received = TFLiteModel(tmp_path / "m.tflite").predict(x)
    (wanted,) = run(quantized, x)
    assert np.mean(wanted.argmax(-1) == received.argmax(-1)) >= 0.95


@pytest.mark.slow
def test_verification_takes_data_sets_and_generators(tmp_path):
    model, policy, student = kept("plain")
    quantized = tfmot.quantize_apply(student, policy)
    x = images(model, 32, seed=7)
    for data in (tf.data.Dataset.from_tensor_slices(x).batch(16), iter([x[:16], x])):
        report = tfmot.export_tflite(quantized, tmp_path / "m.tflite", data)
        assert report.data == "given"
        assert report.images in (32, 48)
    assert tfmot.export_tflite(quantized, tmp_path / "m.tflite").data == "random"
    with pytest.raises(ExportError, match="at least one input"):
        tfmot.export_tflite(quantized, tmp_path / "m.tflite", verify_data=[])


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_files_hold_everything(tmp_path, suffix, library):
    model, policy, student = kept("plain")
    path = tfmot.write_tfmot(student, policy, tmp_path / f"model{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    loaded = tfmot.load_model(path)
    x = images(model, 32, seed=2)
    assert_equal_outputs(loaded, student, x, 1e-4)
    assert_equal_outputs(tfmot.to_student(loaded), student, x, 1e-4)
    fit(loaded, library, count=16)
    loaded.save(path)
    assert_equal_outputs(tfmot.load_model(path), loaded, x, 1e-5)


@pytest.mark.slow
def test_ranges_of_a_float_model_come_from_the_first_batch(tmp_path, library):
    model = randomize(NETS["plain"](), 0)
    quantized = tfmot.quantize_apply(model, BitwidthPolicy.uniform(model, 4, 4))
    with pytest.raises(ExportError, match="not calibrated"):
        tfmot.export_tflite(quantized, tmp_path / "m.tflite")
    fit(quantized, library)
    trained = tfmot.to_student(quantized)
    assert is_calibrated(trained)
    x = images(model, 256, seed=2)
    calibrated = student_of(model, BitwidthPolicy.uniform(model, 4, 4))
    for one, other in zip(
        input_quantizers(trained), input_quantizers(calibrated), strict=True
    ):
        assert 0.25 < one.step() / other.step() < 4
    path = tmp_path / "m.tflite"  # scores of random weights at 4 bits are close
    report = tfmot.export_tflite(quantized, path, x, least_agreement=0.9)
    assert all(layer.codes_equal for layer in report.layers)


def test_a_student_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    _, policy, student = prepared("plain")
    quantized = tfmot.quantize_apply(student, policy)
    student.get_layer("b").bias.assign_add(np.full(8, 3.0))
    monkeypatch.setattr(convert, "to_student", lambda model: student)
    with pytest.raises(ExportError, match=r"whose outputs \d+\.\d% differ"):
        tfmot.export_tflite(quantized, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_every_kind_that_exports_is_known():
    functions = {"InputQuantizer", "InputLayer"}
    assert set(LOWERINGS) - functions - REFUSED <= set(ARGUMENTS) | set(OPERATIONS)


def test_gates_are_refused_by_name():
    inputs = x = keras.Input((4, 4, 3))
    for name in ("a", "b"):
        x = keras.layers.Conv2D(3, 1, name=name)(x)
    gated = keras.layers.Multiply(name="gated")([x, inputs])
    model = keras.Model(inputs, keras.layers.Flatten()(gated))
    policy = BitwidthPolicy.uniform(model, 4, 4)
    with pytest.raises(ExportError, match="'gated' of kind Multiply"):
        tfmot.quantize_apply(model, policy)


def test_arguments_penalties_and_modes_are_carried(library):
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(
        4,
        3,
        activation="relu6",
        kernel_regularizer=keras.regularizers.L2(1e-2),
        kernel_constraint=keras.constraints.MaxNorm(3),
        name="a",
    )(x)
    x = L.BatchNormalization(name="norm", momentum=0.7, epsilon=0.01)(x, training=False)
    x = keras.ops.relu6(keras.ops.relu(x) + L.Conv2D(4, 1, name="b")(x))
    x = L.SpatialDropout2D(0.25, name="drop")(x)
    x = keras.ops.reshape(x, (-1, 6 * 6 * 4))
    outputs = keras.ops.softmax(L.Dense(5, name="c")(x))
    model = randomize(keras.Model(inputs, outputs), 0)
    policy = mixed_policy(model)
    student = student_of(model, policy)
    quantized = tfmot.quantize_apply(student, policy)
    data = images(model, 8, seed=2)
    assert_equal_outputs(quantized, student, data, 1e-4)
    norm = quantized.get_layer("norm")
    assert (norm.momentum, norm.epsilon) == (0.7, 0.01)
    before = norm.moving_mean.numpy()
    fit(quantized, library)
    np.testing.assert_array_equal(norm.moving_mean, before)
    kernel = quantized.get_layer("quant_a").quantize_config.kernel
    loss = 0.01 * float(np.sum(np.square(kernel)))
    assert float(sum(quantized.losses)) == pytest.approx(loss, rel=1e-5)
    again = tfmot.to_student(quantized)
    assert again.get_layer("drop").rate == 0.25
    assert again.get_layer("a").kernel_regularizer.l2 == pytest.approx(1e-2)
    assert_equal_outputs(again, quantized, data, 1e-4)


def test_frozen_normalization_stays_frozen(library):
    _, policy, student = prepared("plain")
    student.get_layer("a_bn").trainable = False
    quantized = tfmot.quantize_apply(student, policy)
    before = [w.numpy() for w in quantized.get_layer("a_bn").weights]
    fit(quantized, library)
    for old, new in zip(before, quantized.get_layer("a_bn").weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert not tfmot.to_student(quantized).get_layer("a_bn").trainable


def test_unusable_models_are_refused(tmp_path, library):
    _, policy, student = kept("plain")
    with pytest.raises(ExportError, match="must be a Keras 3 model"):
        tfmot.quantize_apply("student.keras", policy)
    other = BitwidthPolicy.uniform(student, 7, 7, pinned={})
    with pytest.raises(ExportError, match=r"layer='a' with W2/A5, policy W7/A7"):
        tfmot.quantize_apply(student, other)
    with pytest.raises(PolicyError, match="exactly the searchable layers"):
        tfmot.quantize_apply(student, BitwidthPolicy("other", {"a": (4, 4)}))
    with pytest.raises(
        ExportError, match=r"functional tf_keras model.*Received: .*keras"
    ):
        tfmot.to_student(student)
    plain = library.tf_keras.Sequential([library.tf_keras.layers.Dense(2, input_dim=3)])
    with pytest.raises(ExportError, match="must be one of gmpq_tf's"):
        tfmot.to_student(plain)
    inputs = keras.Input((4,))
    odd = keras.Model(inputs, L.Dense(2, name="d")(L.LeakyReLU(name="leaky")(inputs)))
    with pytest.raises(ExportError, match=r"'leaky' of kind LeakyReLU.*export_tflite"):
        tfmot.quantize_apply(odd, BitwidthPolicy.uniform(odd, 8, 8))
    swish = keras.Model(inputs, L.Activation("swish", name="s")(L.Dense(2)(inputs)))
    with pytest.raises(ExportError, match=r"layer='s' with activation='s"):
        tfmot.to_tf_keras(swish)
    config = tfmot.quantize_configs(policy)["a"]
    with pytest.raises(ExportError, match=r"Received: layer='f' of kind Flatten"):
        config.get_weights_and_quantizers(library.tf_keras.layers.Flatten(name="f"))


def test_unusable_paths_are_refused(tmp_path):
    _, policy, student = kept("plain")
    with pytest.raises(ExportError, match=r"must end in \.h5 or \.keras"):
        tfmot.write_tfmot(student, policy, tmp_path / "model.tflite")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="must be writable"):
        tfmot.write_tfmot(student, policy, tmp_path / "file" / "model.h5")
    with pytest.raises(ExportError, match="must be a tf_keras model"):
        tfmot.load_model(tmp_path / "missing.h5")


def test_a_missing_extra_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    libraries.cache_clear()
    try:
        with pytest.raises(ExportError, match=r"pip install gmpq-tf\[tfmot\]"):
            tfmot.quantize_configs(BitwidthPolicy("m", {"a": (4, 4)}))
        assert "TF_USE_LEGACY_KERAS" not in os.environ
    finally:
        monkeypatch.undo()
        libraries.cache_clear()
        libraries()


FRESH_PROCESS = """
import os, subprocess, sys
import numpy as np
from gmpq_tf.export import tfmot
model = tfmot.load_model(sys.argv[1])
x = np.load(sys.argv[2])
np.save(sys.argv[3], np.asarray(model(x, training=False)))
assert type(model).__module__.startswith("tf_keras"), type(model)
assert "TF_USE_LEGACY_KERAS" not in os.environ
ask = "import os; print('TF_USE_LEGACY_KERAS' in os.environ)"
told = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
assert told.stdout.strip() == "False"
import keras
import tensorflow as tf
assert keras.__version__.startswith("3.")
assert tf.keras.__version__.startswith("3.")
assert tf.keras.layers.Dense is keras.layers.Dense
inputs = keras.Input((4,))
net = keras.Model(inputs, keras.layers.Dense(1)(inputs))
net.compile("sgd", "mse")
net.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)
assert isinstance(net, tf.keras.Model)
"""


@pytest.mark.slow
def test_a_fresh_process_loads_the_file_and_stays_keras_3(tmp_path, repo_root):
    model, policy, student = kept("plain")
    path = tfmot.write_tfmot(student, policy, tmp_path / "model.keras")
    x = images(model, 8, seed=2)
    np.save(tmp_path / "x.npy", x)
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    environment["PYTHONPATH"] = str(repo_root)
    files = [path, tmp_path / "x.npy", tmp_path / "y.npy"]
    result = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, *map(str, files)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    np.testing.assert_allclose(np.load(files[2]), run(student, x)[0], atol=1e-4)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_code_in_a_file_is_not_run(tmp_path, suffix, library):
    tf_keras = library.tf_keras
    witness, path = tmp_path / "was_run", tmp_path / f"m{suffix}"

    def run(x, witness=str(witness)):
        open(witness, "w").close()  # noqa: PTH123
        return x

    inputs = tf_keras.Input((2,))
    tf_keras.Model(inputs, tf_keras.layers.Lambda(run)(inputs)).save(path)
    witness.unlink()
    with pytest.raises(ExportError, match=f"m{suffix}"):
        tfmot.load_model(path)
    assert not witness.exists()
