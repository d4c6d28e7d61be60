"""PolicySearch as a Keras model."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import spearmanr

import gmpq_tf as gmpq
from gmpq_tf.attribution import split_head
from gmpq_tf.search import (
    BudgetError,
    DivergenceError,
    ImportanceLearningRateScheduler,
    PolicySearch,
    StopOnDivergence,
    TemperatureScheduler,
)

layers = keras.layers
PARTS = ("depthwise", "pointwise")
LOSS = {
    "logits": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "softmax": keras.losses.SparseCategoricalCrossentropy(),
}


def classifier(output: str = "logits") -> keras.Model:
    x = inputs = keras.Input((8, 8, 1))
    for i, channels in enumerate((4, 6, 6)):
        x = layers.Conv2D(channels, 3, padding="same", name=f"conv{i}")(x)
        x = layers.BatchNormalization(name=f"norm{i}")(x)
        x = layers.ReLU(name=f"relu{i}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    activation = "softmax" if output == "softmax" else None
    return keras.Model(inputs, layers.Dense(3, activation, name="head")(x), name="net")


@pytest.fixture
def data():
    """Images whose class is where they are bright."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 96)
    x = rng.random((96, 8, 8, 1)).astype("float32")
    for image, label in zip(x, y, strict=True):
        image[:, 2 * label : 2 * label + 4] += 1.0
    return x, y


def compiled(output="logits", jit=False, optimizer=None, **options) -> PolicySearch:
    search = PolicySearch(classifier(output), **options)
    search.compile(
        optimizer or keras.optimizers.SGD(0.05),
        keras.optimizers.SGD(0.5),
        loss=LOSS[output],
        metrics=["accuracy"],
        jit_compile=jit,
    )
    return search


def test_fit_logs_the_risks_of_equation_6_separately(data):
    search = compiled(zeta=30.0, eta=20.0)
    logs = search.fit(*data, batch_size=96, epochs=1, verbose=0).history
    total = (
        logs["task_risk"][0]
        + 30 * logs["complexity_risk"][0]
        + 20 * logs["generalization_risk"][0]
    )
    assert logs["loss"][0] == pytest.approx(total, rel=1e-5)
    assert set(logs) >= {"expected_bit_ops", "p", "zeta", "rank_distance", "accuracy"}
    assert logs["zeta"][0] == 30


def test_first_step_against_the_equations(data):
    """Task, complexity and p of the untouched hypernet, by hand."""
    search = compiled()
    model = classifier()
    cost = gmpq.count_cost(model)
    logs = search.fit(*data, batch_size=96, epochs=1, verbose=0).history
    expected = 0.0
    inverse = []
    for layer in cost.layers:
        bits = 8.0 if layer.name in ("conv0", "head") else 3.0  # the mean of 2, 3, 4
        expected += layer.macs * bits * bits
        inverse.append(4 / bits * 6 / bits)
    assert logs["expected_bit_ops"][0] == pytest.approx(expected, rel=1e-5)
    assert logs["complexity_risk"][0] == pytest.approx(
        expected / cost.bit_ops, rel=1e-5
    )
    # p is logged after the update, which moves the importances a little.
    assert logs["p"][0] == pytest.approx(np.mean(inverse), rel=1e-2)


def test_costs_are_those_of_each_layer_whatever_its_candidates():
    """Layers with other numbers of candidates, one pinned on one side, by hand."""
    pinned = {"conv0": (4, 8), "conv1": (None, 8), "head": (8, None)}
    space = gmpq.SearchSpace((2, 4), (2, 3, 8), pinned)
    search = PolicySearch(classifier(), space, eta=0.0)
    search.set_temperature(2.0)
    rng, expected = np.random.default_rng(0), 0.0
    for layer in search.mixed_layers():
        means = []
        pair = search.candidates[layer.name]
        for side, values in zip(("kernel", "input"), pair, strict=True):
            drawn = rng.normal(size=len(values))
            getattr(layer, f"{side}_importance").assign(drawn)
            pi = np.exp(drawn / 2) / np.exp(drawn / 2).sum()
            means.append(pi @ values)
        expected += search.macs[layer.name] * np.prod(means)
    assert float(search.expected_bit_ops()) == pytest.approx(expected, rel=1e-5)
    for layer, pair in zip(
        search.mixed_layers(), search.branches.branch_probabilities(), strict=True
    ):
        for mine, its in zip(pair, layer.branch_probabilities(), strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-6)


def test_search_learns_weights_and_importances(data):
    search = compiled(zeta=100.0, eta=10.0)
    before = [np.array(v) for v in search.importance_variables]
    teacher = [np.array(v) for v in search.teacher.weights]
    logs = search.fit(*data, batch_size=32, epochs=6, verbose=0).history
    assert logs["task_risk"][-1] < logs["task_risk"][0]
    moved = [
        np.abs(np.array(v) - b).max()
        for v, b in zip(search.importance_variables, before, strict=True)
    ]
    assert min(moved) > 1e-4
    for weight, old in zip(search.teacher.weights, teacher, strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.slow
def test_higher_zeta_gives_a_cheaper_hypernet(data):
    costs = []
    for zeta in (0.0, 3000.0):
        search = compiled(zeta=zeta, eta=0.0)
        search.fit(*data, batch_size=32, epochs=4, verbose=0)
        costs.append(float(search.expected_bit_ops()))
    assert costs[1] < 0.8 * costs[0]


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("fraction", [0.0112, 0.0135, 0.0165])
def test_policy_lands_within_3_percent_below_the_budget(data, fraction):
    search = compiled(bit_ops_budget=fraction, eta=10.0)
    search.fit(*data, batch_size=32, epochs=2, verbose=0)
    cost = gmpq.count_cost(classifier(), search.policy()).bit_ops
    budget = fraction * gmpq.count_cost(classifier()).bit_ops
    assert 0.97 * budget <= cost <= budget


def test_budget_moves_zeta_and_the_expected_cost_towards_it(data):
    search = compiled(bit_ops_budget=0.0105, eta=0.0, zeta=100.0)
    start = float(search.expected_bit_ops())
    logs = search.fit(*data, batch_size=16, epochs=30, verbose=0).history
    assert start > search.budget
    assert logs["zeta"][0] > 100
    gaps = [abs(e - search.budget) for e in logs["expected_bit_ops"][-10:]]
    assert max(gaps) < 0.5 * (start - search.budget)


def test_impossible_budget_is_refused_at_once_with_the_range():
    with pytest.raises(BudgetError, match=r"The space reaches .* raise the budget"):
        PolicySearch(classifier(), bit_ops_budget=0.001)


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize("output", ["logits", "softmax"])
def test_sparse_and_one_hot_labels_give_the_same_step(data, output):
    x, y = data
    results = []
    for hot in (False, True):
        keras.utils.set_random_seed(3)
        search = PolicySearch(classifier(output), eta=10.0)
        kind = "Categorical" if hot else "SparseCategorical"
        loss = getattr(keras.losses, f"{kind}Crossentropy")(
            from_logits=output == "logits"
        )
        search.compile("sgd", "sgd", loss)
        labels = keras.utils.to_categorical(y, 3) if hot else y
        logs = search.fit(x, labels, batch_size=32, verbose=0, shuffle=False).history
        results.append([logs["loss"][0], logs["generalization_risk"][0]])
    np.testing.assert_allclose(*results, rtol=1e-5)


@pytest.mark.slow
def test_jit_compile_gives_the_same_losses(data):
    histories = []
    for jit in (False, True):
        keras.utils.set_random_seed(5)
        search = compiled(jit=jit, eta=10.0, bit_ops_budget=0.013)
        logs = search.fit(*data, batch_size=32, epochs=2, verbose=0, shuffle=False)
        histories.append(logs.history["loss"])
    np.testing.assert_allclose(*histories, rtol=1e-3)


def test_eta_zero_runs_no_teacher(data):
    search = compiled(eta=0.0)
    logs = search.fit(*data, batch_size=48, verbose=0).history
    assert logs["generalization_risk"] == [0.0]
    assert "rank_distance" not in logs
    assert search.policy().made_by["strategy"] == "edmips"


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 10.0])
def test_eta_zero_holds_no_teacher(data, eta):
    """Neither in its weights, nor among the variables that a traced step reads."""
    search = compiled(eta=eta)
    search.calibrate([data[0]])
    step = tf.function(search.train_step)
    traced = step.get_concrete_function(tuple(part[:8] for part in data))
    optimizers = (search.optimizer, search.importance_optimizer)
    held = [*search.hypernet.variables, *search.metrics_variables, search.zeta]
    held += [variable for each in optimizers for variable in each.variables]
    known = {id(variable.value) for variable in held}
    others = [v for v in traced.variables if id(v) not in known]
    weights = len(search.weights) - len(search.hypernet.weights) - 1
    if eta:
        assert weights == len(search.teacher.weights) > 0
        assert len(others) >= weights
    else:
        assert search.teacher is None and search.generalization is None
        assert weights == 0
        assert not others


@pytest.mark.quick_rows(1)
@pytest.mark.parametrize(
    "options",
    [
        {"p": 2.0},
        {"attribution_class": "predicted"},
        {"map_size": "native"},
        {"top_k": 5},
        {"feature_layer": "relu1"},
    ],
    ids=str,
)
def test_options_of_the_attribution(data, options):
    search = compiled(eta=10.0, **options)
    logs = search.fit(*data, batch_size=48, verbose=0).history
    assert logs["generalization_risk"][0] > 0
    if "p" in options:
        assert logs["p"][0] == 2


def test_evaluate_and_predict(data):
    search = compiled(eta=10.0)
    search.fit(*data, batch_size=32, verbose=0)
    result = search.evaluate(*data, batch_size=32, verbose=0, return_dict=True)
    scores = search.predict(data[0], batch_size=32, verbose=0)
    np.testing.assert_allclose(scores, search.hypernet(data[0]), atol=1e-5)
    log_p = scores - scores.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    assert float(result["loss"]) == pytest.approx(
        -log_p[np.arange(96), data[1]].mean(), rel=1e-4
    )
    assert float(result["accuracy"]) == pytest.approx(
        (scores.argmax(-1) == data[1]).mean()
    )


def test_stock_callbacks(data, tmp_path):
    pytest.importorskip("tensorboard", reason="keras.callbacks.TensorBoard needs it")
    search = compiled(eta=10.0, optimizer=keras.optimizers.SGD(0.05, momentum=0.9))
    callbacks = [
        keras.callbacks.TensorBoard(tmp_path / "tb"),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "s.weights.h5", save_weights_only=True
        ),
        keras.callbacks.ModelCheckpoint(tmp_path / "s.keras"),
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
        ImportanceLearningRateScheduler(lambda epoch: 0.2 / (epoch + 1)),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.TerminateOnNaN(),
        StopOnDivergence(),
    ]
    search.fit(*data, batch_size=48, epochs=2, verbose=0, callbacks=callbacks)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["learning_rate"]) for r in rows] == pytest.approx([0.1, 0.05])
    assert [float(r["importance_learning_rate"]) for r in rows] == pytest.approx(
        [0.2, 0.1]
    )
    assert float(rows[1]["task_risk"]) > 0
    loaded = keras.models.load_model(tmp_path / "s.keras")
    np.testing.assert_allclose(loaded(data[0]), search(data[0]), atol=1e-6)
    assert loaded.policy() == search.policy()
    assert float(loaded.importance_optimizer.learning_rate) == pytest.approx(0.1)
    assert len(loaded.network_variables) == len(search.network_variables)
    for ours, theirs in zip(
        search.optimizer.variables, loaded.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_backup_and_restore_resumes_bit_for_bit(data, tmp_path):
    def run(callbacks):
        keras.utils.set_random_seed(1)
        search = compiled(
            eta=10.0,
            bit_ops_budget=0.013,
            optimizer=keras.optimizers.SGD(0.05, momentum=0.9),
        )
        search.calibrate([data[0]])
        search.fit(
            *data,
            batch_size=32,
            epochs=4,
            verbose=0,
            shuffle=False,
            callbacks=callbacks,
        )
        return search

    whole = run([])
    backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    with pytest.raises(KeyboardInterrupt):
        run([backup, Interrupt()])
    resumed = run([keras.callbacks.BackupAndRestore(tmp_path)])
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    assert whole.policy() == resumed.policy()


def test_divergence_names_the_risk(data):
    x, y = data
    x = x.copy()
    search = compiled(eta=10.0)
    search.calibrate([x])
    x[40] = np.nan
    with pytest.raises(DivergenceError, match=r"epoch 1.*task_risk"):
        search.fit(x, y, batch_size=32, verbose=0, callbacks=[StopOnDivergence()])


def test_policy_is_refused_after_divergence():
    search = compiled()
    search.importance_variables[0].assign([np.nan] * 3)
    with pytest.raises(DivergenceError, match="finite importances"):
        search.policy()


@pytest.mark.slow
def test_ranges_are_calibrated_from_whatever_fit_takes(data):
    x, y = data
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
    steps = []
    for source in ((x, y), (dataset,)):
        keras.utils.set_random_seed(0)  # the same network twice
        search = compiled(eta=0.0, optimizer=keras.optimizers.SGD(0.0))
        search.fit(*source, verbose=0)
        steps.append(search.hypernet.get_layer("conv1").input_quantizer.step(0))
    assert steps[0] == pytest.approx(steps[1], rel=0.1)
    assert steps[0] != pytest.approx(2.0)  # the constant it starts from
    with pytest.raises(ValueError, match="calibrate"):
        compiled(eta=0.0).fit(iter(dataset), verbose=0)


def test_teacher_maps_are_those_of_the_model_given(data):
    search = PolicySearch(classifier(), eta=1.0)
    model = classifier()
    search.teacher.set_weights(model.get_weights())
    ours = search.generalization.teacher_parts.backbone(data[0], training=False)
    theirs = split_head(model)[0](data[0], training=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.slow
def test_a_bfloat16_teacher_has_the_maps_of_the_float_one(data, tmp_path):
    model = classifier()
    plain, narrow = (
        PolicySearch(model, eta=1.0, teacher_dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    maps = [
        search.generalization.teacher_maps(*data).numpy() for search in (plain, narrow)
    ]
    assert maps[1].dtype == "float32"
    assert 0 < np.abs(maps[1] - maps[0]).max() < 0.03 * maps[0].max()
    orders = [m.reshape(len(m), -1) for m in maps]
    ranks = [spearmanr(a, b).statistic for a, b in zip(*orders, strict=True) if a.any()]
    assert np.mean(ranks) > 0.99
    narrow.compile(loss=LOSS["logits"])
    narrow.fit(*data, verbose=0)
    narrow.save(tmp_path / "search.keras")
    again = keras.models.load_model(tmp_path / "search.keras")
    assert again.hypernet.get_layer("conv1").compute_dtype == "float32"
    assert again.teacher.get_layer("conv1").compute_dtype == "bfloat16"
    assert {weight.dtype for weight in again.teacher.weights} == {"float32"}


def test_a_cooled_mixture_becomes_the_policy_it_stands_for(data):
    search = compiled()
    layer = search.mixed_layers()[1]
    layer.kernel_importance.assign([0.1, 0.5, 0.2])
    soft, _ = layer.branch_probabilities()
    weights = np.exp([0.1, 0.5, 0.2])
    np.testing.assert_allclose(soft, weights / weights.sum(), rtol=1e-5)
    bits = search.policy()
    cooling = TemperatureScheduler(0.01, epochs=3)
    logs = search.fit(*data, epochs=3, verbose=0, callbacks=[cooling]).history
    np.testing.assert_allclose(logs["temperature"], [1.0, 0.1, 0.01], rtol=1e-6)
    layer.kernel_importance.assign([0.1, 0.5, 0.2])
    sharp, _ = layer.branch_probabilities()
    np.testing.assert_allclose(sharp, [0, 1, 0], atol=1e-6)
    assert search.policy()[layer.name].weight_bits == bits[layer.name].weight_bits


@pytest.mark.parametrize(("final", "epochs"), [(0.0, 3), (-1.0, 3), (0.1, 0)])
def test_impossible_temperatures_are_refused(final, epochs):
    with pytest.raises(ValueError, match="Received: final="):
        TemperatureScheduler(final, epochs)


@pytest.mark.slow
def test_separable_convolutions_are_searched_as_the_two_they_are():
    x = inputs = keras.Input((8, 8, 1))
    x = layers.SeparableConv2D(4, 3, activation="relu", name="first")(x)
    x = layers.SeparableConv2D(6, 3, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x), name="net")
    search = PolicySearch(model)
    images = np.random.default_rng(0).random((4, 8, 8, 1)).astype("float32")
    np.testing.assert_allclose(search.teacher(images), model(images), atol=1e-5)
    parts = [f"{name}_{part}" for name in ("first", "second") for part in PARTS]
    assert list(search.policy()) == [*parts, "head"]
    assert [layer.name for layer in search.mixed_layers()] == [*parts, "head"]
