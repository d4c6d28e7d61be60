"""Blocks, statistics and all of post-training together, against closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import gmpq_tf as gmpq
from gmpq_tf.files import DamagedFileError
from gmpq_tf.graph import read_graph
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.post_training import (
    BlockConfig,
    RefineConfig,
    learn_blocks,
    match_statistics,
    refine,
)
from gmpq_tf.post_training.blocks import find_blocks
from gmpq_tf.post_training.walk import reference_of
from gmpq_tf.transform.calibrate import CalibrationError
from tests.post_training.shipping import check_ships
from tests.transform.models import MODELS, batch_of

QUICK = BlockConfig(steps=8)


def network():
    """Two inverted residuals and a head, BatchNormalization in one of them."""
    inputs = x = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(x)
    for n in range(2):
        y = layers.Conv2D(8, 1, use_bias=n > 0, name=f"expand{n}")(x)
        if n == 0:
            y = layers.BatchNormalization(name="norm")(y)
        y = layers.ReLU(6.0, name=f"relu{n}")(y)
        y = layers.DepthwiseConv2D(3, padding="same", name=f"deep{n}")(y)
        y = layers.ReLU(name=f"relu{n}_deep")(y)
        x = layers.Add(name=f"add{n}")([x, layers.Conv2D(4, 1, name=f"project{n}")(y)])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(5, activation="softmax", name="head")(x)
    model = keras.Model(inputs, x)
    random = np.random.default_rng(4)
    for weight in model.weights:
        weight.assign(random.normal(0, 0.5, weight.shape))
        if "variance" in weight.path or "gamma" in weight.path:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    return model


def images(count=32, seed=0):
    return np.random.default_rng(seed).normal(0.3, 1, (count, 8, 8, 3)).astype("f4")


def student_of(model, x, bits=(3, 4), **kwargs):
    policy = BitwidthPolicy.uniform(model, *bits, pinned={})
    student = gmpq.quantize_model(model, policy, **kwargs)
    gmpq.calibrate(student, x)
    return student


def sums_of(model, name):
    """A function of images: the sums of a layer, BatchNormalization included."""
    return keras.Model(model.inputs, model.get_layer(name).output)


def names_of(blocks):
    return [[unit.call.name for unit in block.units] for block in blocks]


def test_blocks_are_inverted_residuals():
    model = network()
    student = student_of(model, images(4))
    graph, other = read_graph(student), read_graph(reference_of(model))
    blocks = find_blocks(graph, other)
    assert names_of(blocks) == [
        ["first", "expand0", "deep0", "project0"],
        ["expand1", "deep1", "project1"],
        ["head"],
    ]
    targets = [[other.calls[n].name for n in b.targets.values()] for b in blocks]
    assert targets == [["add0"], ["add1"], ["head"]]
    assert [b.start for b in blocks[1:]] == [b.stop for b in blocks[:-1]]


@pytest.mark.slow
def test_blocks_without_a_cut_hand_tensors_on():
    model = network()
    student = student_of(model, images(4))
    graph, other = read_graph(student), read_graph(reference_of(model))
    blocks = find_blocks(graph, other, kernels=1, most=1)
    assert [name for names in names_of(blocks) for name in names] == [
        layer.name for layer in model.layers if hasattr(layer, "kernel")
    ]
    assert learn_blocks(
        student, model, images(8), config=BlockConfig(steps=2, kernels=1)
    )


@pytest.mark.parametrize("fit", ["mean", "error", "spread"])
def test_statistics_of_linear_sums_become_those_of_the_float_network(fit):
    model, x = network(), images()
    student = student_of(model, x)
    codes = {
        n: np.array(
            student.get_layer(n).kernel_quantizer.codes(student.get_layer(n).kernel)
        )
        for n in ("project0", "project1", "expand0")
    }
    found = match_statistics(student, model, x, fit=fit)
    for name in ("project0", "project1"):  # no ReLU follows: every value counts
        layer = student.get_layer(name)
        ours = np.asarray(sums_of(student, name)(x), "float64").reshape(-1, 4)
        theirs = np.asarray(sums_of(model, name)(x), "float64").reshape(-1, 4)
        np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=2e-3)
        if fit == "spread":
            np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=2e-3)
        if fit == "error":
            slope = [np.polyfit(ours[:, c], theirs[:, c], 1)[0] for c in range(4)]
            np.testing.assert_allclose(slope, 1.0, atol=2e-3)
        if fit == "mean":
            assert (found[name].gain == 1).all()
        np.testing.assert_array_equal(
            layer.kernel_quantizer.codes(layer.kernel), codes[name]
        )


def test_values_that_a_relu_hides_do_not_count():
    """A channel whose negative sums alone are wrong is left as it is."""
    inputs = keras.Input((1,))
    x = layers.Dense(1, name="first")(inputs)
    model = keras.Model(inputs, layers.Dense(1, name="head")(layers.ReLU()(x)))
    model.get_layer("first").kernel.assign([[1.0]])
    x = np.array([[-9.0], [-8.0], [1.0], [2.0]], "float32")
    student = student_of(model, x, (8, 8))
    # The student's sums are clipped from below: only the hidden ones differ.
    student.get_layer("first").input_quantizer.set_branch(0, 11 / 255, round(255 / 11))
    found = match_statistics(student, model, x)
    assert abs(float(found["first"].shift[0])) < 0.05


def test_blocks_are_learned_and_errors_are_those_of_the_models():
    model, x = network(), images()
    student = student_of(model, x)
    before = [np.array(w) for w in student.weights]
    found = learn_blocks(student, model, x, config=BlockConfig(steps=60))
    assert list(found) == ["project0", "project1", "head"]
    assert all(block.error <= block.error_before for block in found.values())
    assert any(block.error < 0.9 * block.error_before for block in found.values())
    assert any((a != b).any() for a, b in zip(before, student.weights, strict=True))
    theirs = np.asarray(sums_of(model, "add1")(x))
    ours = np.asarray(sums_of(student, "add1_quantizer")(x))
    measured = np.square(ours - theirs).mean() / theirs.var()
    assert measured == pytest.approx(found["project1"].error, rel=1e-2)


def test_nothing_is_kept_that_is_worse(monkeypatch):
    model, x = network(), images(8)
    student = student_of(model, x)
    before = [np.array(w) for w in student.weights]
    awful = BlockConfig(steps=3, shift=1e3, ranges=0.0, gain=0.0, rounding=0.0)
    found = learn_blocks(student, model, x, config=awful)
    for old, new in zip(before, student.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert all(b.error == b.error_before and b.changed == 0 for b in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nested", "separable_layer", "gates", "residual"])
@pytest.mark.filterwarnings("ignore:.*used more than once")
def test_models_of_other_shapes_ship(name, tmp_path):
    model = MODELS[name]()
    x = batch_of(model, 8)
    student = student_of(model, x)
    config = RefineConfig(blocks=BlockConfig(steps=2))
    assert refine(student, model, x, config).blocks
    check_ships(student, x, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        RefineConfig(blocks=QUICK),
        RefineConfig(statistics="spread", rounding="nearest"),
        RefineConfig(statistics="keep", blocks=BlockConfig(steps=20, drop=0.5)),
        RefineConfig(ranges="percentile", statistics="error", blocks=QUICK),
    ],
    ids=["default", "spread", "dropped", "percentile"],
)
def test_each_option_ships(config, tmp_path):
    model, x = network(), images(16)
    student = student_of(model, x)
    before = np.square(np.asarray(student(x)) - np.asarray(model(x))).mean()
    found = refine(student, model, x, config)
    after = np.square(np.asarray(student(x)) - np.asarray(model(x))).mean()
    assert after < before
    assert bool(found.blocks) == (config.rounding == "blocks")
    assert bool(found.statistics) == (config.statistics != "keep")
    check_ships(student, x, tmp_path)
    twin = gmpq.integer_twin(student)
    scores = np.asarray(twin.predict(x, verbose=0))
    np.testing.assert_allclose(scores, np.asarray(student(x)), atol=0.02)


@pytest.mark.slow
def test_an_interrupted_call_goes_on(tmp_path, monkeypatch):
    from gmpq_tf.post_training.open_block import OpenBlock

    model, x, state = network(), images(16), tmp_path / "blocks.state"
    whole = student_of(model, x)
    learn_blocks(whole, model, x, config=QUICK)
    learn, calls = OpenBlock.learn, []

    def cut_off(self, *args):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(1)
        return learn(self, *args)

    student = student_of(model, x)
    monkeypatch.setattr(OpenBlock, "learn", cut_off)
    with pytest.raises(KeyboardInterrupt):
        learn_blocks(student, model, x, config=QUICK, state=state)
    monkeypatch.setattr(OpenBlock, "learn", learn)
    again = student_of(model, x)
    found = learn_blocks(again, model, x, config=QUICK, state=state)
    assert len(found) == 3
    for a, b in zip(whole.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    # Of other options it is started anew.
    other = student_of(model, x)
    learn_blocks(other, model, x, config=BlockConfig(steps=9), state=state)
    assert any(
        (np.array(a) != b).any()
        for a, b in zip(again.weights, other.weights, strict=True)
    )


def test_a_state_of_another_kind_is_refused(tmp_path):
    model, x, state = network(), images(4), tmp_path / "state.npz"
    np.savez(state, weights=np.zeros(3))
    with pytest.raises(DamagedFileError, match="Received: state="):
        learn_blocks(student_of(model, x), model, x, config=QUICK, state=state)


def test_other_grids_keep_nearest_rounding():
    model, x = network(), images(8)
    student = student_of(model, x, (4, 4), kernel_quantizer="max_abs")
    with pytest.raises(CalibrationError, match=r"Received: .*max_abs"):
        learn_blocks(student, model, x)
    found = refine(student, model, x)
    assert found.statistics
    assert not found.blocks


def test_data_sets_and_images():
    """Only the first images count, however they come."""
    model, x = network(), images(20)
    labelled = tf.data.Dataset.from_tensor_slices((x, x[:, 0, 0, 0])).batch(4)
    config = RefineConfig(images=8, rounding="nearest")
    weights = []
    for data in (x, x[:8], labelled, [x[:4], x[4:8]]):
        student = student_of(model, x)
        refine(student, model, data, config)
        weights.append([np.array(w) for w in student.weights])
    for whole, part, batched, listed in zip(*weights, strict=True):
        np.testing.assert_array_equal(whole, part)
        np.testing.assert_array_equal(batched, listed)


@pytest.mark.slow
def test_many_classes_of_few_images_keep_nearest_rounding():
    model, x = network(), images(4)
    student = student_of(model, x, (3, 8))
    layer = student.get_layer("head")  # 4 sums a channel, 4 weights
    before = layer.kernel_quantizer.codes(layer.kernel)
    found = learn_blocks(student, model, x, config=BlockConfig(steps=40))
    after = layer.kernel_quantizer.codes(layer.kernel)
    np.testing.assert_array_equal(before, after)
    assert found["head"].changed == 0
    assert found["head"].error < found["head"].error_before  # by shifts


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RefineConfig(statistics="spraed"), "Received: statistics='spraed'"),
        (lambda: RefineConfig(rounding="block"), "Received: rounding='block'"),
        (lambda: RefineConfig(images=0), "Received: images=0"),
        (lambda: BlockConfig(steps=0), "Received: steps=0"),
        (lambda: BlockConfig(drop=1.0), "Received: drop=1.0"),
        (lambda: BlockConfig(gain=-1.0), "Received: gain=-1.0"),
        (lambda: match_statistics(None, None, None, fit="men"), "Received: fit='men'"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
