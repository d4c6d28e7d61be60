"""Networks on lines, [batch, steps, channels]: files, and the whole way to them."""

import importlib
from importlib.util import find_spec

import keras
import numpy as np
import pytest
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.cost_tables import TableOptions
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.float_model import float_tflite
from gmpq_tf.export.latency.pieces import File
from gmpq_tf.export.litert_recipe import recipe
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.file_cost import file_bytes
from gmpq_tf.export.tflite.flatbuffer import read_model
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.export.tflite.verify import local_deviations
from gmpq_tf.graph import GraphError, read_graph, searchable_names
from gmpq_tf.search import PolicySearch
from gmpq_tf.train.report import ReportConfig, attribute

L = keras.layers
X = np.random.default_rng(3).normal(0, 1, (24, 20, 6)).astype("float32")
SLOPES = keras.initializers.RandomUniform(-0.2, 0.6, seed=1)


def temporal(filters=8, rates=(2, 4, 8)):
    """Causal convolutions of growing dilation with additions between them."""
    x = inputs = keras.Input((20, 6), name="signal")
    x = L.ReLU()(L.BatchNormalization()(L.Conv1D(filters, 3, padding="causal")(x)))
    for rate in rates:
        options = {"padding": "causal", "dilation_rate": rate, "activation": "relu"}
        y = L.SpatialDropout1D(0.1)(L.Conv1D(filters, 3, **options)(x))
        x = L.ReLU()(L.Add()([x, L.Conv1D(filters, 1)(y)]))
    x = L.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, L.Dense(3, activation="softmax", name="scores")(x))


def separable():
    x = inputs = keras.Input((20, 6), name="signal")
    x = L.Conv1D(8, 5, strides=2, padding="same", activation="relu")(x)
    x = L.BatchNormalization()(L.DepthwiseConv1D(3, depth_multiplier=2)(x))
    x = L.SeparableConv1D(8, 3, padding="same")(L.ReLU(6.0)(x))
    x = L.Conv1D(8, 3, groups=4)(L.ZeroPadding1D((1, 2))(x))
    x = L.BatchNormalization()(L.MaxPooling1D(2)(x))
    x = L.Cropping1D((1, 1))(L.UpSampling1D(3)(x))
    x = L.Concatenate(1)([x, L.LeakyReLU(0.2)(x)])
    x = L.AveragePooling1D(3, 2, padding="same")(x)
    x = L.Conv1DTranspose(8, 3, strides=2)(L.Concatenate()([x, x]))
    x = L.AveragePooling1D(2)(L.Average()([x, L.Conv1D(8, 1)(x)]))
    return keras.Model(inputs, L.Dense(3, name="scores")(L.Flatten()(x)))


def labels_a_step():
    """A label for every step, gates and slopes, scaled inputs, lines turned around."""
    x = inputs = keras.Input((20, 6), name="signal")
    x = L.Conv1D(8, 3, padding="same", activation="swish")(L.Rescaling(2.0, 0.5)(x))
    x = L.Conv1D(8, 3, padding="same")(x)
    x = L.PReLU(SLOPES, shared_axes=[1])(x)
    gate = L.Dense(8, activation="sigmoid")(L.GlobalMaxPooling1D(keepdims=True)(x))
    x = L.Conv1D(4, 3)(L.Permute((2, 1))(L.Multiply()([x, gate])))
    x = L.Activation("hard_sigmoid")(L.Reshape((3, 8))(x))
    x = L.Dense(8)(L.BatchNormalization()(x))
    x = L.BatchNormalization()(L.Activation("hard_sigmoid")(L.Dense(8)(x)))
    return keras.Model(inputs, L.Softmax(name="scores")(L.Dense(5)(x)))


def nested():
    """A model inside a model, and a convolution that is called twice."""
    part = keras.Sequential([L.Conv1D(6, 3, padding="same"), L.ReLU()], name="part")
    shared = L.Conv1D(6, 3, strides=2, padding="causal", name="shared")
    x = inputs = keras.Input((20, 6), name="signal")
    x = L.Add()([part(x), x])
    x = L.MaxPooling1D()(shared(shared(x)))
    return keras.Model(inputs, L.Dense(2, name="scores")(L.Flatten()(x)))


NETS = {f.__name__: f for f in (temporal, separable, labels_a_step, nested)}


def student_of(model, weight_bits=4, activation_bits=4):
    policy = gmpq.BitwidthPolicy.uniform(model, weight_bits, activation_bits)
    student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, X)
    gmpq.snap_biases(student)
    return student


def off(lowered, data=X):
    found = local_deviations(lowered, [data])
    assert found
    return {d.name: d.off for d in found if d.off > 0.002}


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_files_compute_what_was_trained(net, bits, tmp_path):
    keras.utils.set_random_seed(1)
    student = student_of(NETS[net](), bits, 4)
    assert off(lower(student)) == {}
    export_tflite(student, tmp_path / "m.tflite", verify_data=X, latency_runs=0)
    scores = TFLiteModel(tmp_path / "m.tflite").predict(X)
    wanted = np.asarray(student(X))
    assert scores.shape == wanted.shape
    assert np.mean(np.isclose(scores, wanted, atol=1e-5)) > 0.97


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("storage", ["packed", "smallest"])
def test_kernels_of_few_bits_are_packed(storage, tmp_path):
    keras.utils.set_random_seed(1)
    model = temporal(32)
    student = student_of(model, 2, 4)
    path = tmp_path / "m.tflite"
    report = export_tflite(student, path, storage, verify_data=X, latency_runs=0)
    assert off(lower(student, storage)) == {}
    kind = {"packed": "INT4", "smallest": "INT2"}[storage]
    assert [r.stored_type for r in report.layers].count(kind) >= 6
    assert report.storage_bytes[storage] < report.storage_bytes["fast"]
    table = file_bytes(model, TableOptions(storage=storage))
    bytes_ = table.cost(dict.fromkeys(searchable_names(model), (2, 4)))
    assert report.file_bytes <= bytes_ <= 1.2 * report.file_bytes


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("kind", ["float32", "int8", "uint8"])
def test_inputs_and_outputs_are_lines(kind, tmp_path):
    student = student_of(labels_a_step())
    path = tmp_path / "m.tflite"
    export_tflite(student, path, input_type=kind, output_type=kind, latency_runs=0)
    graph = read_model(path.read_bytes()).subgraphs[0]
    (source,), (target,) = graph.inputs, graph.outputs
    assert list(graph.tensors[source].shape[1:]) == [20, 6]
    assert list(graph.tensors[target].shape[1:]) == [3, 5]


def test_tensors_stay_images_between_convolutions():
    """From the first to the global pool, and the sums between them."""
    content = lower(student_of(temporal())).content
    file = File(content)
    operators = [file.code(number) for number in range(len(file.operators))]
    reshapes = [n for n, code in enumerate(operators) if code == "RESHAPE"]
    sums = [n for n, code in enumerate(operators) if code == "ADD"]
    assert len(sums) == 3 and operators.count("CONV_2D") == 7
    assert not [n for n in reshapes if operators.index("CONV_2D") < n < sums[-1]]


def test_a_line_has_the_codes_of_an_image_of_one_row():
    """The same kernels, steps and results, in the layer and in the file."""
    keras.utils.set_random_seed(2)
    options = {"dilation_rate": 2, "activation": "relu"}

    def line(x):
        x = L.Conv1D(8, 3, strides=2, padding="same", name="a")(x)
        x = L.MaxPooling1D(2)(L.Conv1D(8, 3, name="b", **options)(x))
        return L.GlobalAveragePooling1D()(L.DepthwiseConv1D(2, name="c")(x))

    def image(x):
        x = L.Reshape((1, 20, 6))(x)
        x = L.Conv2D(8, (1, 3), strides=(1, 2), padding="same", name="a")(x)
        options["dilation_rate"] = (1, 2)
        x = L.MaxPooling2D((1, 2))(L.Conv2D(8, (1, 3), name="b", **options)(x))
        return L.GlobalAveragePooling2D()(L.DepthwiseConv2D((1, 2), name="c")(x))

    models = []
    for make in (line, image):
        inputs = keras.Input((20, 6))
        models.append(keras.Model(inputs, L.Dense(3, name="d")(make(inputs))))
    for ours, theirs in zip(models[0].weights, models[1].weights, strict=True):
        theirs.assign(np.reshape(ours, theirs.shape))
    lines, images = (student_of(model) for model in models)
    np.testing.assert_array_equal(lines(X), images(X))
    files = [TFLiteModel(lower(s).content).predict(X) for s in (lines, images)]
    np.testing.assert_array_equal(*files)
    slopes = [gradients(student) for student in (lines, images)]
    for ours, theirs in zip(*slopes, strict=True):
        np.testing.assert_allclose(np.ravel(ours), np.ravel(theirs), atol=1e-5)


def gradients(student):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.sin(student(X, training=True)))
    kernels = [w.value for w in student.trainable_weights if w.name == "kernel"]
    return tape.gradient(loss, kernels)


def test_eight_bits_are_near_the_float_model():
    keras.utils.set_random_seed(1)
    model = temporal()
    policy = gmpq.BitwidthPolicy.uniform(model, 8, 8)
    student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, X)
    np.testing.assert_allclose(student(X), model(X), atol=0.02)


def test_channels_first_is_refused_by_name():
    inputs = keras.Input((6, 20))
    x = L.Conv1D(4, 3, data_format="channels_first", name="turned")(inputs)
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))
    with pytest.warns(UserWarning, match="'turned' with channels first"):
        gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))


def test_open_lengths_are_refused_by_name():
    inputs = keras.Input((None, 6))
    x = L.GlobalAveragePooling1D()(L.Conv1D(4, 3, name="line")(inputs))
    model = keras.Model(inputs, L.Dense(2)(x))
    with pytest.warns(UserWarning, match="'line' with an open size"):
        student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
    gmpq.calibrate(student, X)
    with pytest.raises(ExportError, match="'line' with an open size"):
        lower(student)


def test_micro_takes_lines(tmp_path):
    student = student_of(temporal())
    path = tmp_path / "m.tflite"
    export_tflite(student, path, runtime="micro", verify_data=X)
    assert TFLiteModel(path, kernels="reference").batch == 1


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 4, 7)])
def test_scaling_of_any_rank(shape):
    """Alone, and before a convolution: a number, one a channel, statistics."""
    inputs = keras.Input(shape)
    x = L.BatchNormalization()(L.Rescaling(0.5, 0.1)(inputs))
    x = L.BatchNormalization()(L.ReLU()(x * 1.5))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))
    data = np.random.default_rng(0).normal(size=(16, *shape)).astype("float32")
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
    gmpq.calibrate(student, data)
    gmpq.snap_biases(student)
    assert off(lower(student), data) == {}


def signals(count=96):
    """Class k: a bump whose sign and place say which."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, count)
    x = rng.normal(0, 0.3, (count, 20, 6)).astype("float32")
    for signal, label in zip(x, y, strict=True):
        signal[5 * label + 2 : 5 * label + 7] += 1.0
    return x, y


@pytest.mark.parametrize("eta", [5.0, pytest.param(0.0, marks=pytest.mark.slow)])
def test_the_whole_way_from_a_search_to_a_file(eta, tmp_path):
    keras.utils.set_random_seed(1)
    x, y = signals()
    loss = "sparse_categorical_crossentropy"
    model = temporal(rates=(2,))
    options = {"metrics": ["accuracy"], "jit_compile": False}
    model.compile(keras.optimizers.Adam(0.01), loss, **options)
    model.fit(x, y, epochs=3, verbose=0)
    search = PolicySearch(model, budget="W4A4", eta=eta)
    gmpq.calibrate(search.hypernet, x)
    optimizers = keras.optimizers.Adam(1e-3), keras.optimizers.Adam(0.05)
    search.compile(*optimizers, loss, jit_compile=False)
    history = search.fit(x, y, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    if eta:
        assert 0 < history["generalization_risk"][-1] < np.inf
        assert history["rank_distance"][-1] > 0
    student = gmpq.quantize_model(model, search.policy())
    gmpq.calibrate(student, x)
    student.compile(keras.optimizers.Adam(1e-3), loss, **options)
    student.fit(x, y, epochs=3, verbose=0)
    gmpq.snap_biases(student, x)
    report = export_tflite(
        student, tmp_path / "m.tflite", verify_data=x, labels=y, latency_runs=0
    )
    assert all(layer.codes_equal for layer in report.layers)
    student.save(tmp_path / "student.keras")
    again = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(again(x), student(x))


def test_reports_say_that_maps_over_steps_are_left_out(tmp_path, capsys):
    found = attribute(tmp_path, [], temporal(), None, ReportConfig())
    assert found is None and "left out" in capsys.readouterr().out


def test_no_line_to_attribute_is_said_before_the_work():
    inputs = keras.Input((20, 6))
    model = keras.Model(inputs, L.Dense(3)(L.Flatten()(inputs)))
    with pytest.raises(GraphError, match=r"\(batch, steps, channels\)"):
        PolicySearch(model, budget=0.5, eta=1.0)


def test_nested_and_shared_lines_are_searched_once_each():
    model = nested()
    names = searchable_names(model)
    assert names.count("shared") == 1 and len(names) == 3
    assert {c.kind for c in read_graph(model).calls} >= {"Conv1D", "MaxPooling1D"}


def test_tfmot_takes_lines(tmp_path):
    # Looked for, not imported: TFMOT's import sets TF_USE_LEGACY_KERAS for good.
    if not all(map(find_spec, ("tensorflow_model_optimization", "tf_keras"))):
        pytest.skip("the extra `tfmot` is not installed")
    tfmot = importlib.import_module("gmpq_tf.export.tfmot")
    keras.utils.set_random_seed(1)
    model = temporal()
    np.testing.assert_allclose(tfmot.to_tf_keras(model)(X), model(X), atol=1e-5)
    student = student_of(model)
    policy = gmpq.BitwidthPolicy.uniform(model, 4, 4)
    wrapped = tfmot.quantize_apply(student, policy)
    near = np.isclose(wrapped(X, training=False), student(X), atol=1e-5)
    assert np.mean(near) > 0.95
    path = tmp_path / "m.tflite"
    report = tfmot.export_tflite(wrapped, path, verify_data=X, latency_runs=0)
    assert all(layer.codes_equal for layer in report.layers)


@pytest.mark.slow
def test_recipes_take_lines():
    tool = pytest.importorskip("litert_quantizer.quantizer")
    keras.utils.set_random_seed(1)
    model = temporal()
    policy = gmpq.BitwidthPolicy.uniform(model, 4, 8)
    student = student_of(model, 4, 8)
    content = float_tflite(student)
    rules = recipe(student, policy, "dynamic", float_file=content)
    assert len(rules) == len(policy)
    quantizer = tool.Quantizer(bytearray(content), rules)
    result = quantizer.quantize(None, enable_progress_report=False)
    scores = TFLiteModel(bytes(result.quantized_model)).predict(X)
    np.testing.assert_allclose(scores, student(X), atol=0.05)
