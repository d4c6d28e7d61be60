import keras
import numpy as np
import pytest
from keras import layers, ops

import gmpq_tf as gmpq
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.graph import read_graph
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.quantizers import InputQuantizer
from gmpq_tf.transform.gates import split_gates
from gmpq_tf.transform.placement import is_local_pool, place_quantizers
from gmpq_tf.transform.rewrite import split_activations
from tests.transform import models

UNSIGNED, SIGNED, PLACED = False, True, None
FREE, NESTS = False, True

# Model -> the 8-bit quantizers on tensors, {name: (signed, power of two)}, and the
# layers whose own input grid must nest in one of them.
EXPECTED = {
    # Nothing but the logits: every tensor has one reader, which quantizes it itself.
    "plain": ({"head_quantizer": (SIGNED, FREE)}, set()),
    # The sum reads the first layer's output and the inner one's, then feeds a layer.
    "residual": (
        {
            "relu_1_quantizer": (UNSIGNED, NESTS),
            "norm_quantizer": (SIGNED, FREE),
            "last_conv_quantizer": (SIGNED, FREE),
            "head_quantizer": (SIGNED, FREE),
        },
        {"inner"},
    ),
    # One grid for all operands of the concatenation, so that it only copies.
    "branches": (
        {
            "image_quantizer": (PLACED, NESTS),
            "concat_quantizer": (SIGNED, NESTS),
            "after_quantizer": (SIGNED, FREE),
            "head_quantizer": (SIGNED, FREE),
        },
        {"a", "b", "after"},
    ),
    # The int8 average keeps the grid of what it reads.
    "average_pool": (
        {
            "first_quantizer": (UNSIGNED, NESTS),
            "second_quantizer": (UNSIGNED, FREE),
            "head_quantizer": (SIGNED, FREE),
        },
        {"second"},
    ),
}


def planned(model):
    graph = split_activations(read_graph(model))
    placement = place_quantizers(graph)
    grids = {*placement.on_output.values(), *placement.on_operand.values()}
    return {g.name: (g.signed, g.power_of_two) for g in grids}, placement.nested


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_which_tensors_get_a_grid_and_which_layers_nest(name):
    grids, nested = planned(models.MODELS[name]())
    assert (grids, nested) == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_quantized_model_holds_that_plan(name):
    model = models.MODELS[name]()
    student = gmpq.quantize_model(model, BitwidthPolicy.uniform(model, 4, 4))
    made = [q for q in student.layers if isinstance(q, InputQuantizer)]
    grids, nested = EXPECTED[name]
    assert {q.name: (q.signed, q.power_of_two) for q in made} == grids
    assert {q.bits for q in made} == {(8,)}
    assert nested == {
        layer.name
        for layer in student.layers
        if getattr(getattr(layer, "input_quantizer", None), "power_of_two", False)
    }


def test_each_use_of_a_shared_layer_has_a_grid():
    inputs = keras.Input((8, 8, 3), name="image")
    conv = layers.Conv2D(3, 3, padding="same", name="shared")
    x = conv(inputs)
    outputs = layers.Add(name="add")([x, conv(x)])
    grids, nested = planned(keras.Model(inputs, outputs))
    assert set(grids) == {"shared_quantizer", "shared_quantizer_1", "add_quantizer"}
    assert nested == {"shared"}


def test_softmax_output_stays_float_and_its_logits_have_a_grid():
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="d")(inputs))
    assert set(planned(model)[0]) == {"d_quantizer"}
    student = gmpq.quantize_model(model, BitwidthPolicy.uniform(model, 8, 8))
    assert student.output is student.get_layer("d_activation").output


def test_tensor_with_two_readers_is_quantized_once():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="trunk")(inputs)
    outputs = [layers.Conv2D(2, 1, name=f"head_{i}")(x) for i in range(2)]
    grids, nested = planned(keras.Model(inputs, outputs))
    assert grids["trunk_quantizer"] == (UNSIGNED, NESTS)
    assert nested == {"head_0", "head_1"}


def test_two_model_inputs_are_named_apart():
    grids, _ = planned(models.two_inputs_two_outputs())
    assert {"concat_quantizer", "hidden_quantizer", "boxes_quantizer"} <= set(grids)
    assert not any(name.startswith("extra_quantizer_") for name in grids)


def quantizer_before(layer_name, *between):
    """What is planned for conv -> 8-bit grid -> `between` -> conv `layer_name`."""
    x = image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, name="first")(x)
    x = layers.Add(name="sum")([x, x])  # so that it is stored, and not fused
    for layer in between:
        x = layer(x)
    return planned(keras.Model(image, layers.Conv2D(4, 3, name=layer_name)(x)))


@pytest.mark.parametrize(
    "between",
    [
        [layers.BatchNormalization(name="norm"), layers.UpSampling2D(2), layers.ReLU()],
        [layers.BatchNormalization(name="norm"), layers.UpSampling2D(2)],
    ],
)
def test_grids_nest_through_layers_that_keep_them(between):
    """Without it the layer's step is free, and moving to it in int8 is not exact."""
    grids, nested = quantizer_before("last", *between)
    assert grids["norm_quantizer"] == (SIGNED, NESTS)
    assert "last" in nested


@pytest.mark.parametrize("relu", [layers.ReLU, lambda: layers.Activation("relu6")])
def test_a_relu_after_a_normalization_leaves_nothing_to_store(relu):
    """Both are one kernel, which writes straight to the grid of the layer after it."""
    norm = layers.BatchNormalization(name="norm")
    grids, nested = quantizer_before("last", norm, relu())
    assert "norm_quantizer" not in grids
    assert "last" not in nested


def test_gates_are_on_the_unit_grid_and_their_products_on_that_of_the_reader():
    graph = split_gates(split_activations(read_graph(models.gates())))
    placement = place_quantizers(graph)
    made = {g.name: g for g in placement.on_output.values()}
    units = [name for name, grid in made.items() if grid.unit]
    assert units[:3] == [
        "swish_gate_quantizer",
        "excite_activation_quantizer",
        "hard_gate_quantizer",
    ]
    assert len(units) == 4  # and the last, whose operation Keras has named
    # An offset of a half is whole units of the accumulator if the step is 2^-n.
    assert (made["norm_quantizer"].signed, made["norm_quantizer"].power_of_two) == (
        SIGNED,
        FREE,
    )
    assert made["conv_quantizer"].power_of_two == NESTS
    assert "scaled_quantizer" not in made  # `conv` reads it alone


def test_bilinear_pixels_are_on_no_grid():
    between = [layers.UpSampling2D(2, interpolation="bilinear", name="up")]
    _, nested = quantizer_before("last", *between)
    assert "last" not in nested


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_halves_of_a_local_average_are_exact(padding):
    """c step / 2 rounds to the right side in float32 if the step is a power of two."""
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="first")(image)
    x = layers.AveragePooling2D(2, 1, padding, name="pool")(x)
    outputs = layers.Dense(3, name="head")(layers.GlobalMaxPooling2D()(x))
    grids, _ = planned(keras.Model(image, outputs))
    assert grids["first_quantizer"] == (UNSIGNED, NESTS)


@pytest.mark.parametrize(
    ("padding", "strides", "local"),
    [("valid", 1, False), ("same", 6, False), ("same", 1, True)],
)
def test_a_window_as_large_as_the_image_is_local_if_it_moves(padding, strides, local):
    image = keras.Input((6, 6, 3), name="image")
    pool = layers.AveragePooling2D(6, strides, padding, name="pool")
    graph = read_graph(keras.Model(image, pool(image)))
    assert is_local_pool(graph, graph.calls[-1]) == local


@pytest.mark.parametrize(("vocabulary", "dtype"), [(50, "float32"), (5000, "int32")])
def test_what_stands_for_things_is_not_rounded(vocabulary, dtype):
    """Else the student looks up the embeddings of other words."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((6,), dtype=dtype, name="ids")
    x = layers.Embedding(vocabulary, 4, embeddings_initializer="normal")(ids)
    x = layers.Dense(8, activation="relu", name="up")(x)
    x = layers.Dense(3, name="scores")(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(ids, [x, ops.argmax(x, -1)])
    words = np.random.default_rng(0).integers(0, vocabulary, (64, 6))
    student = gmpq.quantize_model(model, BitwidthPolicy.uniform(model, 8, 8))
    gmpq.calibrate(student, words)
    wanted, classes = (np.asarray(each) for each in model(words))
    scores, found = (np.asarray(each) for each in student(words))
    assert np.abs(scores - wanted).max() < 0.2 * wanted.std()
    np.testing.assert_array_equal(found, scores.argmax(-1))
    assert np.mean(found == classes) > 0.95
    with pytest.raises(ExportError, match="of kind Embedding, which reads no quant"):
        lower(student, float_layers="allow")


def test_masks_are_not_rounded_and_reach_what_reads_them():
    """Steps of zeros count in no mean, as in Keras."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 4), name="steps")
    x = layers.Dense(8, activation="relu", name="up")(layers.Masking()(inputs))
    x = layers.Dense(3, name="scores")(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(inputs, x)
    steps = np.random.default_rng(0).normal(size=(32, 6, 4)).astype("float32")
    steps[np.arange(6) >= np.arange(32)[:, None] % 6 + 1] = 0
    student = gmpq.quantize_model(model, BitwidthPolicy.uniform(model, 8, 8))
    gmpq.calibrate(student, steps)
    wanted = np.asarray(model(steps))
    assert np.abs(student(steps) - wanted).max() < 0.1 * wanted.std()
    with pytest.raises(ExportError, match="GlobalAveragePooling1D of 2 tensors"):
        lower(student)
