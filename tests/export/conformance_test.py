"""Every row of KINDS: sign, placement, lowering and a verified export, or a refusal.

A row without a case fails `test_every_row_has_its_case`.
"""

import keras
import numpy as np
import pytest
from keras import ops

import gmpq_tf as gmpq
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite import export_tflite
from gmpq_tf.export.tflite.lowering import LOWERINGS, lower
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.export.tflite.verify import local_deviations
from gmpq_tf.graph import infer, read_graph
from gmpq_tf.layer_kinds import FUNCTIONS, KINDS, LOWERED, Role
from gmpq_tf.transform.signedness import nonnegative_tensors
from tests.transform.kinds_test import OF_PAIRS, make

L = keras.layers
X = np.random.default_rng(3).normal(0, 1, (24, 6, 6, 3)).astype("float32")
SLOPES = keras.initializers.RandomUniform(-0.2, 0.6, seed=1)
HALVES = np.full((1, 1, 1, 4), 0.5, "float32")


def normalization(x):
    layer = L.Normalization(mean=[0.1, 0.2, 0.3, 0.4], variance=[1.0, 2.0, 0.5, 1.0])
    return layer(x)


# Kind -> what it makes of x [B, 4, 4, 4], never negative, and of y, which may be.
CASES = {
    "Conv2D": lambda x, y: L.Conv2D(4, 3, padding="same")(x),
    "DepthwiseConv2D": lambda x, y: L.DepthwiseConv2D(3, activation="relu")(x),
    "Conv1D": lambda x, y: on_lines(L.Conv1D(4, 3, padding="causal"), x),
    "DepthwiseConv1D": lambda x, y: on_lines(L.DepthwiseConv1D(3, strides=2), x),
    "Conv1DTranspose": lambda x, y: on_lines(L.Conv1DTranspose(4, 3, strides=2), x),
    "Dense": lambda x, y: L.Dense(4)(y),
    "Conv2DTranspose": lambda x, y: L.Conv2DTranspose(4, 3, 2)(x),
    "InputQuantizer": lambda x, y: L.Add()([x, y]),  # every student has some
    "BatchNormalization": lambda x, y: L.BatchNormalization()(L.MaxPooling2D()(y)),
    "Rescaling": lambda x, y: L.Rescaling(0.5, 0.1)(y),
    "Normalization": lambda x, y: normalization(y),
    "Subtract": lambda x, y: ops.subtract(y, 0.25),
    "Divide": lambda x, y: ops.divide(y, 3.0),
    "TrueDivide": lambda x, y: ops.true_divide(x, HALVES),
    "Add": lambda x, y: L.Add()([x, y]),
    "Multiply": lambda x, y: L.Multiply()([x, y]),
    "Average": lambda x, y: L.Average()([x, y, L.Conv2D(4, 1)(x)]),
    "Concatenate": lambda x, y: L.Concatenate()([x, y]),
    "AveragePooling2D": lambda x, y: L.AveragePooling2D(2)(y),
    "GlobalAveragePooling2D": lambda x, y: L.GlobalAveragePooling2D(keepdims=True)(y),
    "MaxPooling2D": lambda x, y: L.MaxPooling2D()(y),
    "GlobalMaxPooling2D": lambda x, y: L.GlobalMaxPooling2D(keepdims=True)(y),
    "Flatten": lambda x, y: L.Reshape((1, 1, 64))(L.Flatten()(y)),
    "Reshape": lambda x, y: L.Reshape((2, 8, 4))(y),
    "Permute": lambda x, y: L.Permute((2, 1, 3))(y),
    "ZeroPadding2D": lambda x, y: L.ZeroPadding2D(1)(y),
    "Cropping2D": lambda x, y: L.Cropping2D(1)(y),
    "UpSampling2D": lambda x, y: L.UpSampling2D(2)(y),
    "AveragePooling1D": lambda x, y: on_lines(L.AveragePooling1D(3, 2), y),
    "GlobalAveragePooling1D": lambda x, y: on_lines(
        L.GlobalAveragePooling1D(keepdims=True), y
    ),
    "MaxPooling1D": lambda x, y: on_lines(L.MaxPooling1D(3, 2, "same"), y),
    "GlobalMaxPooling1D": lambda x, y: on_lines(L.GlobalMaxPooling1D(keepdims=True), y),
    "ZeroPadding1D": lambda x, y: on_lines(L.ZeroPadding1D((2, 1)), y),
    "Cropping1D": lambda x, y: on_lines(L.Cropping1D((1, 2)), y),
    "UpSampling1D": lambda x, y: on_lines(L.UpSampling1D(3), y),
    "UpSampling2D bilinear": lambda x, y: blend(y, 2),
    "Activation": lambda x, y: L.Activation("relu")(y),
    "ReLU": lambda x, y: L.ReLU(2.0)(y),
    "Softmax": None,  # ends the model
    "Relu": lambda x, y: ops.relu(y),
    "Relu6": lambda x, y: ops.relu6(y),
    "Sigmoid": lambda x, y: ops.sigmoid(y),
    "HardSigmoid": lambda x, y: ops.hard_sigmoid(y),
    "Silu": lambda x, y: ops.silu(y),
    "HardSilu": lambda x, y: ops.hard_silu(y),
    "LeakyReLU": lambda x, y: L.LeakyReLU(0.3)(y),
    "LeakyRelu": lambda x, y: ops.leaky_relu(y, 0.1),
    "PReLU": lambda x, y: L.PReLU(SLOPES, shared_axes=[1, 2])(y),
    "Cast": lambda x, y: ops.cast(y, "float32"),
    # Refused.
    "Maximum": lambda x, y: L.Maximum()([x, y]),
    "Minimum": lambda x, y: L.Minimum()([x, y]),
    "Dot": lambda x, y: L.Reshape((4, 4, 16))(L.Dot((2, 2))(_rows(x, y))),
    "RepeatVector": lambda x, y: _image(L.RepeatVector(2)(L.Flatten()(x))),
    "Mean": lambda x, y: ops.mean(y, (1, 2), keepdims=True),
    "Max": lambda x, y: ops.max(y, (1, 2), keepdims=True),
    "Sum": lambda x, y: ops.sum(y, (1, 2), keepdims=True),
    "Absolute": lambda x, y: ops.abs(y),
    "Exp": lambda x, y: ops.exp(y),
    "Square": lambda x, y: ops.square(y),
    "Embedding": lambda x, y: L.Reshape((4, 4, 12))(L.Embedding(9, 3)(x)),
    "CategoryEncoding": lambda x, y: L.Reshape((1, 1, 9))(
        L.CategoryEncoding(9)(L.Flatten()(x))
    ),
    "GetItem": lambda x, y: y[:, :2],
    "Squeeze": lambda x, y: L.Reshape((2, 2, 16))(
        ops.squeeze(L.Reshape((1, 64))(y), 1)
    ),
    "ExpandDims": lambda x, y: ops.expand_dims(L.Reshape((16, 4))(y), 1),
    "Transpose": lambda x, y: ops.transpose(y, (0, 2, 1, 3)),
    "Stack": lambda x, y: L.Reshape((4, 4, 8))(ops.stack([x, y], -1)),
    "Split": lambda x, y: ops.split(y, 2, -1)[0],
    "LayerNormalization": lambda x, y: L.LayerNormalization()(y),
    "RMSNormalization": lambda x, y: L.RMSNormalization()(y),
    "GroupNormalization": lambda x, y: L.GroupNormalization(2)(y),
    "UnitNormalization": lambda x, y: L.UnitNormalization()(y),
}
NOT_BUILT = {*OF_PAIRS, "RandomShear"}  # its own get_config() is refused by Keras
IDENTITIES = {k.name for k in KINDS.values() if k.role is Role.IDENTITY} - NOT_BUILT
# They stand between two files, in a model of their own: region_files_test.py.
HOSTS = {k.name for k in KINDS.values() if k.role is Role.HOST}
# A cast to floats changes nothing, since all are computed in float32.
REFUSED = {k.name for k in KINDS.values() if k.role is Role.FLOAT} - {"Cast"}


def _rows(x, y):
    return [L.Reshape((16, 4))(L.Concatenate(-1)([t])) for t in (x, y)]


def _image(x):
    return L.Reshape((2, 8, 8))(x)


def on_lines(layer, x):
    """A layer on [B, 16, 4], its result as an image of one row."""
    y = layer(L.Reshape((16, 4))(x))
    return L.Reshape((1, *y.shape[1:]))(y)


def model_of(case):
    keras.utils.set_random_seed(1)
    inputs = keras.Input(X.shape[1:], name="image")
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(4, 3, name="first")(inputs)))
    y = L.Conv2D(4, 1, name="second")(x)
    middle = y if case is None else case(x, y)
    end = L.Dense(3, name="scores")(L.Flatten()(L.Conv2D(4, 1, name="third")(middle)))
    return keras.Model(inputs, L.Softmax()(end) if case is None else end)


def student_of(model):
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
    gmpq.calibrate(student, X)
    gmpq.snap_biases(student)
    return student


def check_signs(model):
    """No tensor that is said to be non-negative has a negative value."""
    graph = read_graph(model)
    values = {graph.inputs[0]: ops.convert_to_tensor(X)}
    for call in graph.calls:
        found = keras.tree.flatten(infer(call, values))
        values.update(zip(call.outputs, found, strict=True))
    known = nonnegative_tensors(graph)
    assert known  # at least the ReLU
    assert all(np.min(values[index]) >= 0 for index in known)


def check_file(student):
    """Every layer of the file computes the codes that Keras does, from its inputs."""
    lowered = lower(student)
    found = local_deviations(lowered, [X])
    assert {d.name: d.off for d in found if d.off > 0.002} == {}


def test_every_row_has_its_case():
    assert {*CASES, *IDENTITIES, *NOT_BUILT, *HOSTS} == {*KINDS}


def test_every_lowered_row_has_its_function():
    assert {k.name for k in KINDS.values() if k.role in LOWERED} == {*LOWERINGS}


@pytest.mark.quick_rows(16)
@pytest.mark.parametrize("kind", [k for k in CASES if k not in REFUSED])
def test_what_exports_is_what_was_trained(kind, tmp_path):
    model = model_of(CASES[kind])
    check_signs(model)
    student = student_of(model)
    made = read_graph(student if kind == "InputQuantizer" else model)
    assert kind in {call.row.name for call in made.calls}
    check_signs(student)
    check_file(student)
    path = tmp_path / "m.tflite"
    export_tflite(student, path, verify_data=X, latency_runs=1)
    scores, wanted = TFLiteModel(path).predict(X), np.asarray(student(X))
    assert np.mean(np.isclose(scores, wanted, atol=1e-5)) > 0.97


@pytest.mark.quick_rows(5)
@pytest.mark.parametrize("kind", sorted(IDENTITIES))
def test_what_does_nothing_exports_as_nothing(kind):
    rank = {"SpatialDropout1D": (16, 3), "SpatialDropout3D": (2, 2, 4, 3)}.get(kind)

    def case(x, y):
        y = L.Conv2D(3, 1)(x)
        y = L.Reshape(rank)(y) if rank else y
        y = make(kind)(y)
        return L.Reshape((4, 4, 3))(y) if rank else y

    student = student_of(model_of(case))
    operators = len(lower(student).checks)
    plain = student_of(model_of(lambda x, y: L.Conv2D(3, 1)(x)))
    assert operators == len(lower(plain).checks)


@pytest.mark.quick_rows(12)
@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_has_no_integers_is_refused_at_once_by_name(kind):
    model = model_of(CASES[kind])
    check_signs(model)
    call = next(c for c in read_graph(model).calls if c.kind == kind)
    policy = gmpq.BitwidthPolicy.uniform(model, 4, 4)
    with pytest.warns(UserWarning, match=f"will refuse .*'{call.name}' of kind {kind}"):
        student = gmpq.quantize_model(model, policy)
    gmpq.calibrate(student, X)
    with pytest.raises(ExportError, match=f"'{call.name}' of kind {kind}"):
        lower(student)


@pytest.mark.quick_rows(5)
@pytest.mark.parametrize(
    "name", [f.name for f in FUNCTIONS.values() if f.fused or f.exports]
)
@pytest.mark.parametrize("inside", [True, False])
def test_activation_functions_export_inside_layers_and_after_them(name, inside):
    def case(x, y):
        if inside:
            return L.Conv2D(4, 1, activation=name)(x)
        return L.Activation(name)(y)

    student = student_of(model_of(case))
    check_signs(student)
    check_file(student)


def blend(x, size):
    return L.UpSampling2D(size, interpolation="bilinear")(x)


SLOPED = {
    "object": lambda x, y: L.Conv2D(4, 1, activation=L.LeakyReLU(0.1))(x),
    "keras op": lambda x, y: L.Conv2D(4, 1, activation=ops.leaky_relu)(x),
    "wrapped": lambda x, y: L.Activation(L.LeakyReLU(0.25))(y),
    "of all channels": lambda x, y: L.PReLU(SLOPES, shared_axes=[1, 2, 3])(y),
    "of features": lambda x, y: L.Reshape((1, 1, 64))(L.PReLU(SLOPES)(L.Flatten()(y))),
    "to an addition": lambda x, y: L.Add()([x, L.LeakyReLU(0.1)(y)]),
    "to a pool": lambda x, y: L.AveragePooling2D(2)(L.LeakyReLU(0.1)(y)),
    "twice": lambda x, y: L.LeakyReLU(0.5)(L.LeakyReLU(0.5)(y)),
    "of a sum": lambda x, y: L.LeakyReLU(0.2)(L.Add()([x, y])),
    "bilinear to an addition": lambda x, y: L.Add()(
        [blend(y, 4), L.UpSampling2D(4)(x)]
    ),
    "bilinear to one side": lambda x, y: blend(x, (1, 2)),
    "bilinear twice": lambda x, y: blend(blend(x, 2), (4, 2)),
    "average of two": lambda x, y: L.ReLU()(L.Average()([x, y])),
    "average of features": lambda x, y: L.Reshape((1, 1, 4))(
        L.Average()([L.Dense(4)(L.Flatten()(t)) for t in (x, y)])
    ),
}


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize("case", SLOPED)
def test_tables_and_averages_wherever_they_stand(case):
    student = student_of(model_of(SLOPED[case]))
    check_signs(student)
    check_file(student)


REASONS = {
    "slopes": (lambda x, y: L.PReLU()(y), "use shared_axes"),
    "sizes": (
        lambda x, y: L.Average()([y, L.GlobalAveragePooling2D(keepdims=True)(x)]),
        "of several shapes",
    ),
    "bicubic": (
        lambda x, y: L.UpSampling2D(2, interpolation="bicubic")(y),
        "interpolation='bicubic', use 'nearest'",
    ),
    "thirds": (
        lambda x, y: L.UpSampling2D(3, interpolation="bilinear")(y),
        "use powers of two",
    ),
    "operation": (lambda x, y: ops.average(y, 1, None)[:, None], "along an axis"),
}


@pytest.mark.parametrize("case", REASONS)
def test_settings_without_integers_are_refused_with_the_reason(case):
    make_case, reason = REASONS[case]
    model = model_of(make_case)
    with pytest.warns(UserWarning, match=reason):
        gmpq.build_hypernet(model)
    with pytest.warns(UserWarning, match=reason):
        student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
    with pytest.raises(ExportError, match=reason):
        lower(student)


@pytest.mark.parametrize("kind", ["LeakyReLU", "PReLU", "Average"])
def test_a_hypernet_searches_around_new_kinds(kind):
    model = model_of(CASES[kind])
    hypernet = gmpq.build_hypernet(model)
    gmpq.calibrate(hypernet, X)
    assert np.isfinite(np.asarray(hypernet(X))).all()
