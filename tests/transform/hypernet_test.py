import keras
import numpy as np
import pytest
from keras import layers

import gmpq_tf as gmpq
from gmpq_tf.ends import end_names
from gmpq_tf.graph import GraphError, is_searchable, read_graph
from gmpq_tf.layers import MIXED_LAYERS
from gmpq_tf.policy import BitwidthPolicy, PolicyError
from gmpq_tf.quantizers import InputQuantizer
from gmpq_tf.transform.calibrate import is_calibrated
from tests.transform.models import MODELS, batch_of, flat, plain, residual


@pytest.fixture(params=sorted(MODELS))
def model(request):
    return MODELS[request.param]()


def test_names_weights_and_candidates(model):
    before = flat(model(batch_of(model))), model.get_config()
    hypernet = gmpq.build_hypernet(model, gmpq.SearchSpace((2, 4), (3, 8)))
    found = {layer.name: layer for layer in hypernet.operations}
    for call in read_graph(model).calls:
        layer, sources = found[call.name], getattr(call.layer, "weights", [])
        for source, target in zip(sources, getattr(layer, "weights", []), strict=False):
            np.testing.assert_array_equal(source, target)
        if is_searchable(call.layer):
            assert type(layer) is MIXED_LAYERS[call.kind]
            end = call.name in end_names(model)
            assert layer.weight_bits == ((8,) if end else (2, 4))
            assert layer.activation_bits == ((8,) if end else (3, 8))
    np.testing.assert_array_equal(flat(model(batch_of(model))), before[0])
    assert model.get_config() == before[1]


@pytest.mark.quick_rows(5)
def test_eight_bits_are_close_to_the_model(model):
    hypernet = gmpq.build_hypernet(model, gmpq.SearchSpace((8,), (8,)))
    x = batch_of(model)
    gmpq.calibrate(hypernet, [(x,)])
    found, expected = flat(hypernet(x)), flat(model(x))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 0.08


def test_quantizers_sit_only_inside_layers():
    hypernet = gmpq.build_hypernet(residual())
    assert not [lay for lay in hypernet.layers if isinstance(lay, InputQuantizer)]
    assert not is_calibrated(hypernet)
    gmpq.calibrate(hypernet, [(batch_of(hypernet),)])
    assert is_calibrated(hypernet)


def test_one_branch_is_the_quantized_model_of_that_policy():
    """Where no tensor needs a grid of its own but the logits, both compute alike."""
    model = plain()
    hypernet = gmpq.build_hypernet(model, gmpq.SearchSpace((3,), (4,)))
    student = gmpq.quantize_model(model, BitwidthPolicy.uniform(model, 3, 4))
    x = batch_of(model)
    for each in (hypernet, student):
        gmpq.calibrate(each, [(x,)])
    logits = [
        keras.Model(m.input, m.get_layer("head").output)(x) for m in (hypernet, student)
    ]
    np.testing.assert_array_equal(*logits)


def test_pins():
    model = residual()
    pinned = {"inner": (5, 6)}
    hypernet = gmpq.build_hypernet(model, gmpq.SearchSpace((2, 3), (2,), pinned))
    assert hypernet.get_layer("inner").weight_bits == (5,)
    assert hypernet.get_layer("inner").activation_bits == (6,)
    assert hypernet.get_layer("first").weight_bits == (2, 3)  # the default is replaced
    with pytest.raises(PolicyError, match="Did you mean 'inner'"):
        gmpq.build_hypernet(model, gmpq.SearchSpace(pinned={"iner": (4, 4)}))


def test_importances_start_even_and_are_trained_where_there_is_a_choice():
    hypernet = gmpq.build_hypernet(plain())
    trained = {id(v) for v in hypernet.trainable_variables}
    for layer in (lay for lay in hypernet.layers if is_searchable(lay)):
        for importance in (layer.kernel_importance, layer.input_importance):
            assert not np.any(importance)
            assert (id(importance) in trained) == (layer.name == "middle")


def test_saved_hypernet_is_loaded_by_keras(tmp_path):
    hypernet = gmpq.build_hypernet(residual())
    x = batch_of(hypernet)
    gmpq.calibrate(hypernet, [(x,)])
    hypernet.get_layer("inner").kernel_importance.assign([0.1, 0.5, -0.4])
    hypernet.save(tmp_path / "h.keras")
    again = keras.models.load_model(tmp_path / "h.keras")
    np.testing.assert_array_equal(again(x), hypernet(x))


def test_unquantizable_layers_are_named_in_one_warning():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.EinsumDense("bhwi,io->bhwo", (8, 8, 4), name="up")(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, 3, name="conv")(x))
    with pytest.warns(UserWarning, match=r"up \(EinsumDense, 768 MACs\)"):
        gmpq.build_hypernet(model)


def test_unbuilt_model_is_refused():
    with pytest.raises(GraphError, match="build it"):
        gmpq.build_hypernet(keras.Sequential([layers.Dense(3)]))
