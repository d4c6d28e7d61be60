import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import gmpq_tf as gmpq
from gmpq_tf.ends import end_names
from gmpq_tf.graph import GraphError, is_searchable, read_graph, searchable_names
from gmpq_tf.layers import QUANT_LAYERS
from gmpq_tf.policy import BitwidthPolicy, PolicyError
from gmpq_tf.quantizers import InputQuantizer
from gmpq_tf.transform.calibrate import input_quantizers, is_calibrated
from gmpq_tf.transform.gates import split_gates
from gmpq_tf.transform.rewrite import flat_copy
from tests.transform.models import (
    MODELS,
    batch_of,
    flat,
    head,
    plain,
    residual,
)


def student_of(model, weight_bits=8, activation_bits=8, **kwargs):
    policy = BitwidthPolicy.uniform(model, weight_bits, activation_bits)
    student = gmpq.quantize_model(model, policy, **kwargs)
    gmpq.calibrate(student, [(batch_of(model),)])
    return student


def relative_error(found, expected):
    found, expected = flat(found), flat(expected)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(params=sorted(MODELS))
def model(request):
    return MODELS[request.param]()


@pytest.mark.quick_rows(6)
def test_eight_bits_are_close_and_the_model_is_left_alone(model):
    x = batch_of(model)
    before = flat(model(x)), model.get_weights(), model.get_config()
    nodes = {layer.name: len(layer._inbound_nodes) for layer in model.layers}
    student = student_of(model)
    assert relative_error(student(x), before[0]) < 0.08
    np.testing.assert_array_equal(flat(model(x)), before[0])
    for weight, old in zip(model.get_weights(), before[1], strict=True):
        np.testing.assert_array_equal(weight, old)
    assert model.get_config() == before[2]
    assert {lay.name: len(lay._inbound_nodes) for lay in model.layers} == nodes
    assert student.name == model.name
    assert [t.name for t in student.inputs] == [t.name for t in model.inputs]


@pytest.mark.quick_rows(10)
def test_names_kinds_and_weights_are_kept(model):
    student = {layer.name: layer for layer in student_of(model, 3, 4).operations}
    for call in split_gates(read_graph(model)).calls:
        layer = student[call.name]
        if not is_searchable(call.layer):
            assert type(layer) is type(call.layer)
            sources = getattr(call.layer, "weights", [])
            targets = getattr(layer, "weights", [])
        else:
            assert type(layer) is QUANT_LAYERS[call.kind]
            sources = call.layer.weights
            targets = layer.weights[: len(sources)]
        for source, target in zip(sources, targets, strict=True):
            assert source is not target
            np.testing.assert_array_equal(source, target)


@pytest.mark.quick_rows(9)
def test_bits_are_those_of_the_policy(model):
    student = student_of(model, 3, 5)
    for name in searchable_names(model):
        layer, end = student.get_layer(name), name in end_names(model)
        assert layer.kernel_quantizer.bits == ((8,) if end else (3,))
        assert layer.input_quantizer.bits == ((8,) if end else (5,))


@pytest.mark.quick_rows(3)
def test_saved_student_is_loaded_by_keras(model, tmp_path):
    student, x = student_of(model, 4, 4), batch_of(model)
    student.save(tmp_path / "student.keras")
    again = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(flat(again(x)), flat(student(x)))
    assert is_calibrated(again)


def test_nested_grids_have_powers_of_two_for_steps(model):
    for quantizer in input_quantizers(student_of(model, 4, 4)):
        if quantizer.power_of_two:
            assert np.frexp(quantizer.step())[0] == 0.5


@pytest.mark.parametrize("method", ["pact", "lsq"])
@pytest.mark.parametrize("kernel_method", ["max_abs", "lsq"])
def test_every_pair_of_quantizers(method, kernel_method):
    model = residual()
    student = student_of(model, input_quantizer=method, kernel_quantizer=kernel_method)
    assert {q.method for q in input_quantizers(student)} == {method}
    assert student.get_layer("inner").kernel_quantizer.method == kernel_method
    x = batch_of(model)
    assert relative_error(student(x), model(x)) < 0.08


def test_more_bits_are_closer():
    model = plain()
    x, expected = batch_of(model), model(batch_of(model))
    errors = [relative_error(student_of(model, b, b)(x), expected) for b in (2, 4, 8)]
    assert errors[0] > errors[1] > errors[2]


def test_fit_lowers_the_loss_and_moves_ranges_and_steps():
    student = student_of(plain(), 3, 3)
    layer = student.get_layer("middle")
    learned = (layer.input_quantizer.log2_range, layer.kernel_quantizer.log2_step)
    before = [np.array(v) for v in learned]
    x = batch_of(plain())
    y = np.digitize(x.mean((1, 2, 3)), [0.2, 0.25, 0.3])
    optimizer, loss = keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy"
    student.compile(optimizer, loss, jit_compile=False)
    history = student.fit(x, y, epochs=6, verbose=0).history["loss"]
    assert history[-1] < history[0]
    for variable, old in zip(learned, before, strict=True):
        assert np.abs(variable - old).max() > 1e-4
    assert np.isfinite(flat(student(x))).all()


def test_statistics_of_batch_normalization_are_carried_over():
    model = plain()
    norm, ours = model.get_layer("norm"), student_of(model).get_layer("norm")
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(norm, name))


def test_frozen_layers_stay_frozen():
    model = plain()
    model.get_layer("first").trainable = False
    model.get_layer("norm").trainable = False
    student = student_of(model)
    names = [v.path for v in student.trainable_variables]
    assert not {"first/kernel", "first/bias", "norm/gamma", "norm/beta"} & set(names)
    assert "middle/kernel" in names


def test_unquantizable_layers_are_named_in_one_warning():
    inputs = x = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    x = layers.EinsumDense("bhwi,io->bhwo", (6, 6, 4), name="up")(x)
    x = layers.EinsumDense("bhwi,io->bhwo", (6, 6, 8), name="up_again")(x)
    model = keras.Model(inputs, head(x))
    with pytest.warns(UserWarning, match="stay float") as caught:
        student = student_of(model)
    messages = [str(w.message) for w in caught if "stay float" in str(w.message)]
    assert len(messages) == 1
    assert "up (EinsumDense, 576 MACs)" in messages[0]
    assert "up_again (EinsumDense, 1,152 MACs)" in messages[0]
    assert type(student.get_layer("up")) is layers.EinsumDense
    batch = batch_of(model)
    assert relative_error(student(batch), model(batch)) < 0.08


def test_ordinary_models_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        student = student_of(residual())
        student(batch_of(student))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def test_subclassed_model_is_refused():
    policy = BitwidthPolicy("mine", {"dense": (4, 4)})
    with pytest.raises(GraphError, match=r"Received: model=Subclassed.*keras.Model"):
        gmpq.quantize_model(Subclassed(), policy)


class Tripled(keras.Model):
    """A model with a graph that computes something else than its graph."""

    def call(self, x, training=None, mask=None):
        return 3.0 * super().call(x, training=training)


class TripledSequence(keras.Sequential):
    """Likewise."""

    def call(self, x, training=None, mask=None):
        return 3.0 * super().call(x, training=training)


def test_a_model_that_computes_more_than_its_graph_is_refused_or_left_whole():
    inputs = keras.Input((6,), name="x")
    own = Tripled(inputs, layers.Dense(2, name="inner")(inputs))
    policy = BitwidthPolicy("mine", {"inner": (8, 8)})
    for model in (own, TripledSequence([inputs, layers.Dense(2, name="inner")])):
        with pytest.raises(GraphError, match=r"whose own call\(\) is not in its graph"):
            gmpq.quantize_model(model, policy)
    model = keras.Model(inputs, layers.Dense(2, name="head")(own(inputs)))
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    np.testing.assert_allclose(flat_copy(model)(x), model(x), atol=1e-6)


def test_channels_first_computes_what_channels_last_does():
    """Also where a row is as long as there are channels, so that any axis would fit."""
    x = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype("float32")
    found, weights, trained = [], None, []
    for order in ("channels_last", "channels_first"):
        first = order == "channels_first"
        given = x.transpose(0, 3, 1, 2) if first else x
        inputs = keras.Input(given.shape[1:])
        options = {"padding": "same", "data_format": order}
        # Keras 3.15 itself adds a bias along the rows of such a size.
        y = layers.Conv2D(6, 3, use_bias=False, name="a", **options)(inputs)
        y = layers.DepthwiseConv2D(3, data_format=order, name="b")(y)
        y = layers.GlobalMaxPooling2D(data_format=order)(y)
        model = keras.Model(inputs, layers.Dense(2, name="c")(y))
        if weights is None:
            weights = [w + 0.1 * np.arange(w.shape[-1]) for w in model.get_weights()]
        model.set_weights(weights)
        made = gmpq.quantize_model(model, BitwidthPolicy.uniform(model, 4, 4))
        for net in (made, gmpq.build_hypernet(model)):
            if first:  # calibration samples values in the order of the memory
                net.set_weights(trained.pop(0))
            else:
                gmpq.calibrate(net, given)
                trained.append(net.get_weights())
            found += [np.asarray(net(given, training=t)) for t in (False, True)]
    np.testing.assert_allclose(found[:4], found[4:], rtol=1e-4, atol=1e-4)


def test_subclassed_model_inside_is_refused_or_left_float():
    inputs = keras.Input((6,), name="x")
    x = layers.Dense(6, activation="relu", name="first")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="head")(Subclassed()(x)))
    with pytest.raises(GraphError, match="mine"):
        gmpq.quantize_model(model, BitwidthPolicy.uniform(model, 4, 4))


def test_policy_for_another_model_is_refused():
    names = dict.fromkeys(searchable_names(plain()), (4, 4))
    names["midle"] = names.pop("middle")
    with pytest.raises(PolicyError, match=r"'midle'.*Did you mean 'middle'"):
        gmpq.quantize_model(plain(), BitwidthPolicy("model", names))


def test_unknown_quantizer_is_refused():
    model = plain()
    with pytest.raises(ValueError, match="Did you mean 'pact'"):
        student_of(model, input_quantizer="packt")


def test_unbuilt_sequential_is_refused():
    model = keras.Sequential([layers.Dense(3, name="d")])
    with pytest.raises(GraphError, match="build it"):
        gmpq.quantize_model(model, BitwidthPolicy("m", {"d": (4, 4)}))


def test_layer_that_cannot_be_rebuilt_is_named():
    class Odd(layers.Layer):
        def __init__(self, factor):
            super().__init__(name="odd")
            self.factor = [factor, object()]

        def call(self, x):
            return x

        def get_config(self):
            return {"wrong": 1}

    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, layers.Dense(2, name="head")(Odd(2)(inputs)))
    with pytest.raises(GraphError, match=r"(?s)'odd'.*get_config"):
        gmpq.quantize_model(model, BitwidthPolicy.uniform(model, 4, 4))


def test_names_that_would_clash_do_not():
    inputs = x = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, activation="swish", name="conv")(x)
    x = layers.Activation("tanh", name="conv_activation")(x)
    y = layers.Conv2D(4, 3, padding="same", name="conv_quantizer")(x)
    x = layers.Add(name="add")([x, y])
    x = layers.Conv2D(4, 3, name="add_quantizer")(x)
    model = keras.Model(inputs, head(x))
    student, batch = student_of(model), batch_of(model)
    assert relative_error(student(batch), model(batch)) < 0.08


def test_shared_concatenation_of_different_signs():
    inputs = x = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(x)
    y, concat = layers.ReLU(name="relu")(x), layers.Concatenate(name="concat")
    z = layers.Add(name="add")([concat([y, y]), concat([x, y])])
    model = keras.Model(inputs, head(z))
    student, batch = student_of(model), batch_of(model)
    assert relative_error(student(batch), model(batch)) < 0.08


def test_stored_tensors_are_on_their_grids():
    """Whatever runs between two layers takes at most 256 values, evenly spaced."""
    student = student_of(residual())
    x = batch_of(student)
    made = [q for q in student.layers if isinstance(q, InputQuantizer)]
    assert len(made) >= 4
    outputs = keras.Model(student.input, [q.output for q in made])(x)
    for quantizer, values in zip(made, outputs, strict=True):
        codes = values.numpy() / quantizer.step()
        np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
        low, high = quantizer.codes()
        assert low - 0.01 <= codes.min() and codes.max() <= high + 0.01


@pytest.mark.parametrize("where", ["global", "layers"])
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float16", "float64"])
def test_students_compute_in_float32(dtype, where, tmp_path):
    before = keras.config.dtype_policy()
    own = {} if where == "global" else {"dtype": dtype}
    try:
        keras.config.set_dtype_policy(dtype if where == "global" else "float32")
        inputs = x = keras.Input((8, 8, 3), name="image")
        x = layers.Conv2D(4, 3, activation="swish", name="conv", **own)(x)
        x = layers.BatchNormalization(name="norm", **own)(x)
        model = keras.Model(inputs, head(layers.Activation("softmax", **own)(x)))
        student, batch = student_of(model), batch_of(model)
        hypernet = gmpq.build_hypernet(model)
        student.save(tmp_path / "student.keras")
        again = keras.models.load_model(tmp_path / "student.keras")
        assert keras.config.dtype_policy().name == (
            dtype if where == "global" else "float32"
        )
    finally:
        keras.config.set_dtype_policy(before)
    for made in (student, hypernet, again):
        computing = [lay for lay in made.layers if type(lay).__name__ != "InputLayer"]
        assert {layer.compute_dtype for layer in computing} == {"float32"}
        inside = [q for layer in computing for q in layer._layers]
        assert {quantizer.compute_dtype for quantizer in inside} == {"float32"}
    np.testing.assert_array_equal(student.get_layer("conv").kernel.dtype, "float32")
    assert relative_error(student(batch), tf.cast(model(batch), "float32")) < 0.1
