"""`gmpq.compress` against the float model, the file itself, and what it refuses."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.budget import BudgetError
from gmpq_tf.compression import CORRECTIONS, corrections, make_student, whole
from gmpq_tf.export.errors import ExportError
from gmpq_tf.export.tflite.runtime import TFLiteModel
from gmpq_tf.inputs import InputError
from gmpq_tf.task import TaskError

L = keras.layers
RANDOM = np.random.default_rng(0)
X = RANDOM.uniform(0, 255, (96, 8, 8, 3)).astype("float32")


def network(norm=True, activation="relu"):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    x = L.Rescaling(1 / 255)(x)
    for index in range(3):
        x = L.Conv2D(32, 3, padding="same", name=f"conv{index}")(x)
        x = L.BatchNormalization(name=f"norm{index}")(x) if norm else x
        x = L.Activation(activation)(x)
    x = L.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, L.Dense(10, name="last")(x), name="net")
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.moving_variance.assign(RANDOM.uniform(0.01, 0.1, 32))
    return model


@pytest.fixture(scope="module")
def model():
    return network()


def quick(model, data, budget, path, **options):
    options = {"table_images": 16, "least_agreement": 0.0, "progress": "none"} | options
    return gmpq.compress(model, data, budget, path, **options)


def test_figures_are_those_of_the_models(model, tmp_path):
    labels = np.argmax(model.predict(X, verbose=0), -1)
    labels[:24] = (labels[:24] + 1) % 10
    journal = tmp_path / "journal.jsonl"
    options = {"journal": journal, "correction": "statistics"}
    result = quick(model, (X, labels), "20kB", tmp_path / "m.tflite", **options)
    # A problem, the policy of eight bits, and 2 and 4 bits of each kernel.
    assert len(journal.read_text().splitlines()) >= 2 + 2 * 4
    assert result.file_bytes == result.path.stat().st_size <= 20_000
    assert result.storage == "smallest" and result.images == 96
    assert result.float_accuracy == pytest.approx(0.75)
    says = np.argmax(result.student.predict(X, verbose=0), -1)
    file_says = np.argmax(TFLiteModel(result.path).predict(X), -1)
    # Compiled for another batch Keras may round a sum the other way.
    assert result.accuracy == pytest.approx(np.mean(says == labels), abs=0.05)
    assert result.tflite_accuracy == pytest.approx(np.mean(file_says == labels))
    assert result.agreement == pytest.approx(np.mean(says == file_says), abs=0.05)
    assert f"{result.file_bytes} bytes" in str(result)
    with pytest.raises(AttributeError):
        result.storage = "fast"


@pytest.fixture(scope="module")
def wanted(model, tmp_path_factory):
    return quick(model, X, None, tmp_path_factory.mktemp("file") / "a.tflite")


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("kind", ["batches", "tf.data", "pairs"])
def test_any_data_gives_the_same_file(model, wanted, tmp_path, kind):
    images = tf.data.Dataset.from_tensor_slices(X)
    data = {
        "batches": [X[:64], X[64:]],
        "tf.data": images.batch(64),
        "pairs": images.map(lambda x: (x, 0)).batch(64),
    }[kind]
    result = quick(model, data, None, tmp_path / "b.tflite")
    assert result.policy.layers == wanted.policy.layers
    assert result.path.read_bytes() == wanted.path.read_bytes()
    assert (result.accuracy is None) == (kind != "pairs")
    own, file = (m.predict(X).argmax(-1) for m in (model, TFLiteModel(result.path)))
    alike = None if kind == "pairs" else pytest.approx(np.mean(own == file))
    assert result.float_agreement == alike
    assert ("% as the float model" in str(result)) == (kind != "pairs")


def distance(model, student):
    """Mean divergence on the images that nothing was measured on."""
    teacher = tf.nn.log_softmax(model(X[72:], training=False))
    own = tf.nn.log_softmax(student(X[72:], training=False))
    return float(np.mean(np.sum(np.exp(teacher) * (teacher - own), -1)))


@pytest.mark.slow
def test_auto_keeps_the_correction_nearest_to_float(model):
    policy, said = gmpq.BitwidthPolicy.uniform(model, 3, 3), []
    images = [X[:72]], [X[72:]]
    auto = make_student(model, policy, *images, say=said.append)
    assert set(auto.divergences) == set(CORRECTIONS) and len(said) == len(CORRECTIONS)
    gaps = {
        name: distance(model, make_student(model, policy, *images, name).student)
        for name in CORRECTIONS
    }
    for name, gap in gaps.items():
        assert auto.divergences[name] == pytest.approx(gap, rel=0.05)
    found = distance(model, auto.student)
    assert found == pytest.approx(auto.divergences[auto.correction], rel=0.01)
    assert found <= 1.05 * min(gaps.values())


def test_statistics_that_are_not_those_of_the_data_are_kept():
    """As where BatchNormalization was folded and written as an identity."""
    model = network()
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.moving_variance.assign(np.full(32, 1e4))
            layer.gamma.assign(np.full(32, 100.0))
    policy = gmpq.BitwidthPolicy.uniform(model, 4, 4)
    found = make_student(model, policy, [X[:72]], [X[72:]])
    assert found.correction != "statistics"
    suits = CORRECTIONS["statistics"].suits
    assert suits(model, policy)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.moving_mean.assign(np.zeros(32))
            layer.moving_variance.assign(np.ones(32))
    assert not suits(model, policy)
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 32)).astype("float32")
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):  # as keras.applications has them
            layer.moving_variance.assign(np.full(32, 1 - layer.epsilon))
            layer.gamma.assign(np.ones(32))
            beta = np.asarray(layer.beta)
            np.testing.assert_allclose(np.asarray(layer(x)), x + beta, atol=1e-5)
    assert not suits(model, policy)


def test_only_layers_that_learn_count_as_work(monkeypatch):
    model = network(norm=False)
    one_layer = 8 * 8 * 3 * 3 * 32 * 32  # multiply-adds of conv1, and of conv2
    # 300 steps of 32 images, three times as much as a forward pass.
    monkeypatch.setattr(corrections, "LEARNING_MACS", 300 * 32 * 3 * one_layer)
    suits = CORRECTIONS["rounding"].suits
    for coarse, tried in ((["conv1"], True), (["conv1", "conv2"], False)):
        pins = dict.fromkeys(("conv0", "conv1", "conv2", "last"), (8, 8))
        pins |= dict.fromkeys(coarse, (3, 8))
        policy = gmpq.BitwidthPolicy.uniform(model, 8, 8, pinned=pins)
        assert suits(model, policy) == tried


@pytest.fixture(scope="module")
def lagging():
    """A model whose stored statistics lag behind, images, and labels of the right ones.

    Measured again, its statistics are those of the network that gave the labels.
    """
    model = network()
    random = np.random.default_rng(1)
    images = random.uniform(0, 255, (256, 1, 1, 3)) + random.normal(
        0, 30, (256, 8, 8, 3)
    )
    images = images.astype("float32")
    last = model.get_layer("last")
    last.kernel.assign(20 * np.array(last.kernel))
    norms = [each for each in model.layers if isinstance(each, L.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    for _ in norms:  # each needs those before it
        model(images, training=True)
    labels = np.argmax(model(images, training=False), -1)
    for norm in norms:
        norm.moving_mean.assign(np.array(norm.moving_mean) * 0.9)
        norm.moving_variance.assign(np.array(norm.moving_variance) * 1.2)
    assert 0.6 < np.mean(np.argmax(model(images, training=False), -1) == labels) < 0.95
    return model, images, labels


def chosen(lagging, labels, measured=64):
    model, images, _ = lagging
    policy, said = gmpq.BitwidthPolicy.uniform(model, 6, 8), []
    parts = [images[:64]], [images[64 : 64 + measured]]
    found = make_student(model, policy, *parts, say=said.append, labels=labels)
    return found, said


@pytest.mark.slow
def test_labels_tell_that_statistics_measured_again_are_better(lagging):
    _, images, labels = lagging
    bare, _ = chosen(lagging, None, 192)
    assert bare.correction != "statistics" and bare.losses == {}
    found, said = chosen(lagging, labels[64:], 192)
    assert found.correction == "statistics" and "standard error" in said[-1]
    assert found.divergences == bare.divergences
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    scores = found.student(images[64:], training=False)
    assert found.losses["statistics"] == pytest.approx(
        float(loss(labels[64:], scores)), rel=1e-4
    )
    # One-hot labels say the same.
    rows, _ = chosen(lagging, np.eye(10, dtype="float32")[labels[64:]], 192)
    assert rows.losses == found.losses


@pytest.mark.slow
def test_labels_of_other_classes_choose_nothing(lagging):
    _, _, labels = lagging
    found, _ = chosen(lagging, (labels[64:] + 1) % 10, 192)
    assert found.correction != "statistics" and found.losses == {}


@pytest.mark.slow
def test_a_lower_loss_of_few_images_chooses_nothing(lagging):
    _, _, labels = lagging
    found, _ = chosen(lagging, labels[64:68], 4)
    assert found.losses["statistics"] < found.losses[found.correction]


@pytest.mark.slow
def test_compress_compares_with_the_labels_of_the_second_half(lagging, tmp_path):
    model, images, labels = lagging
    # Those of the first half are wrong, and not asked.
    labels = np.concatenate([(labels[:128] + 1) % 10, labels[128:]])
    found = quick(model, (images, labels), None, tmp_path / "m.tflite")
    assert found.correction == "statistics"


@pytest.mark.slow
def test_without_a_budget_every_layer_has_eight_bits(tmp_path):
    result = quick(network(norm=False), X, None, tmp_path / "m.tflite")
    bits = {(b.weight_bits, b.activation_bits) for b in result.policy.values()}
    assert bits == {(8, 8)} and result.storage == "fast"


@pytest.mark.parametrize("known", ["nested", "loss", "stated"])
def test_numbers_are_known_and_measured_by_their_errors(tmp_path, known):
    nested, stated = known == "nested", known == "stated"
    inputs = x = keras.Input((8, 8, 3))
    body = keras.Model(inputs, L.Conv2D(4, 3, activation="relu")(inputs))
    x = body(x) if nested else body.layers[-1](x)
    x = L.Dense(4)(L.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    wanted = np.asarray(model(X))
    targets = wanted + RANDOM.normal(0, 0.1, wanted.shape)
    if stated:  # zeros and ones, which would otherwise be decisions
        targets = RANDOM.integers(0, 2, wanted.shape)
    else:
        model.compile("sgd", "mse")
    data, path = X if nested else (X, targets), tmp_path / "m.tflite"
    kinds = "numbers" if stated else None
    result = quick(model, data, None, path, correction="none", output_kinds=kinds)
    (row,) = result.report.outputs
    assert (row.kind, row.known_from) == ("numbers", "stated" if stated else "loss")
    if nested:
        assert result.float_error is None and "from the labels" not in str(result)
        return
    found = TFLiteModel(result.path).predict(X)
    assert result.float_error == pytest.approx(np.abs(wanted - targets).mean())
    assert result.tflite_error == pytest.approx(np.abs(found - targets).mean())
    assert f"{result.tflite_error:.4g} from the labels" in str(result)


def test_refusals(model, tmp_path):
    path = tmp_path / "m.tflite"
    with pytest.raises(BudgetError, match=r"The least is \d+B"):
        quick(model, X, "1kB", path)
    with pytest.raises(InputError, match="8 images at least"):
        quick(model, X[:7], "20kB", path)
    with pytest.raises(ExportError, match="'activation"):
        quick(network(activation="tanh"), X, "20kB", path)
    with pytest.raises(ValueError, match="statistics"):
        quick(model, X, "20kB", path, correction="statistic")
    with pytest.raises(InputError, match="more than once"):
        quick(model, iter([X]), "20kB", path)
    with pytest.warns(UserWarning, match="Only 20 images"):
        quick(model, X[:20], None, path)
    assert path.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": "."}, "path='.'"),
        ({"path": "{file}/m.tflite"}, "is no folder"),
        ({"scaling": "0-1"}, "scaling='0-1'"),
        ({"class_names": "cat"}, "class_names='cat'"),
        ({"class_names": ["cat", "dog"]}, "2 class_names"),
        ({"data": (X, np.arange(96))}, "from 0 to 9"),
        ({"test_data": (X, np.arange(96))}, "from 0 to 9"),
        ({"data": (X, np.arange(96)), "test_data": X}, "from 0 to 9"),
        ({"data": (X, np.zeros((96, 3))), "test_data": X}, "labels of shape (64, 3)"),
        ({"data": (X, np.full(96, np.nan)), "test_data": X}, "NaN or infinity"),
        ({"output_kinds": "clases"}, "Did you mean 'classes'"),
        ({"output_kinds": {"lats": "classes"}}, "Did you mean 'last'"),
        ({"data": (X, np.arange(96) % 10), "output_kinds": "binary"}, "that is binary"),
        ({"test_data": X[:, :4]}, "shape=(96, 4, 8, 3)"),
        ({"test_data": X[:0]}, "test_data without any"),
        ({"test_data": np.full_like(X, np.nan)}, "with NaN"),
        ({"storage": "small", "budget": None}, "Did you mean 'smallest'"),
        ({"least_agreement": 80}, "0.8 for 80 %"),
        ({"latency_runs": -1}, "latency_runs=-1"),
    ],
)
def test_what_only_the_export_reads_is_refused_first(
    model, tmp_path, monkeypatch, options, said
):
    for work in ("search_policy", "make_student"):
        monkeypatch.setattr(whole, work, lambda *_, **__: pytest.fail("too late"))
    (tmp_path / "file").write_text("")
    path = str(tmp_path / "m.tflite")
    given = {"data": X, "budget": "20kB", "path": path, **options}
    given["path"] = given["path"].format(file=tmp_path / "file")
    with pytest.raises(ValueError, match=re.escape(said)):
        quick(model, **given)


def test_a_model_that_gives_nan_is_refused_first(monkeypatch, tmp_path):
    monkeypatch.setattr(whole, "search_policy", lambda *_, **__: pytest.fail("late"))
    model = network(norm=False)
    model.get_layer("last").bias.assign([np.nan] + [0.0] * 9)
    with pytest.raises(TaskError, match="'last' of the Keras model"):
        quick(model, (X, np.arange(96) % 10), "20kB", tmp_path / "m.tflite")


def test_labels_of_one_output_choose_nothing(monkeypatch):
    for name in {*CORRECTIONS} - {"none"}:
        monkeypatch.delitem(CORRECTIONS, name)
    inputs = keras.Input((8, 8, 3))
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3, activation="relu")(inputs))
    model = keras.Model(inputs, {"kind": L.Dense(3)(x), "size": L.Dense(1)(x)})
    policy = gmpq.BitwidthPolicy.uniform(model, 8, 8)
    labels = {"kind": np.argmax(model(X[72:])["kind"], -1)}
    found = make_student(model, policy, [X[:72]], [X[72:]], labels=labels)
    assert found.losses == {}


def test_float_layers_are_allowed_by_name(tmp_path):
    model, path = network(activation="gelu"), tmp_path / "m.tflite"
    with pytest.raises(ExportError, match="float_layers='allow'"):
        quick(model, X, "W4A4", path)
    with pytest.raises(ExportError, match="Did you mean 'allow'"):
        quick(model, X, "W4A4", path, float_layers="alow")
    result = quick(model, X, "W4A4", path, float_layers="allow", correction="none")
    assert {p.kind for p in result.report.float_parts} == {"Activation"}
    assert result.agreement > 0.9
    # What a file with float layers takes is not known beforehand.
    with pytest.raises(BudgetError, match="budget bit operations"):
        quick(model, X, "20kB", path, float_layers="allow")
