"""What guides a search: scores of labels, one image for both models, penalties."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.graph import GraphError
from gmpq_tf.search import PolicySearch

layers = keras.layers
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
EIGHT = gmpq.SearchSpace((8,), (8,))


def classifier(units=3, activation=None, front=(), middle=(), **options):
    x = inputs = keras.Input((8, 8, 1))
    for layer in front:
        x = layer(x)
    x = layers.Conv2D(4, 3, padding="same", name="conv", **options)(x)
    for layer in middle:
        x = layer(x)
    x = layers.ReLU(name="feature")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(units, activation, name="head")(x))


def images(count=48, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    x = rng.random((count, 8, 8, 1)).astype("float32")
    for image, label in zip(x, y, strict=True):
        image[:, 2 * label : 2 * label + 3] += 1.0
    return x, y


def searching(model, loss=SPARSE, rate=0.0, **options):
    search = PolicySearch(model, **options)
    search.compile(
        keras.optimizers.SGD(rate),
        keras.optimizers.SGD(rate),
        loss=loss,
        jit_compile=False,
    )
    return search


def fitted(search, x, y, **options):
    options = {"batch_size": 48, "verbose": 0, "shuffle": False, **options}
    return search.fit(x, y, **options).history


@pytest.mark.filterwarnings("ignore:Nothing is left", "ignore:.*are all zero")
class TestLabels:
    @pytest.mark.quick_rows(1)
    @pytest.mark.parametrize("activation", [None, "sigmoid"])
    def test_one_logit_has_the_maps_of_two(self, activation):
        """Scores -s / 2 and s / 2 have half the maps of the one score s."""
        x, y = images(classes=2)
        one, two = classifier(1, activation), classifier(2)
        two.get_layer("conv").set_weights(one.get_layer("conv").get_weights())
        kernel, bias = one.get_layer("head").get_weights()
        half = [np.concatenate([-k / 2, k / 2], axis=-1) for k in (kernel, bias)]
        two.get_layer("head").set_weights(half)
        pair = searching(two, eta=10.0, space=EIGHT)
        expected = 2 * pair.generalization.teacher_maps(x, tf.constant(y)).numpy()
        binary = keras.losses.BinaryCrossentropy(from_logits=activation is None)
        search = searching(one, binary, eta=10.0, space=EIGHT)
        for labels in (y, y[:, None], y.astype("float32"), y.astype(bool), 2 * y - 1):
            maps = search.generalization.teacher_maps(x, tf.constant(labels))
            np.testing.assert_allclose(maps, expected, atol=1e-6)
        risk = fitted(search, x, y)["generalization_risk"][0]
        assert risk == pytest.approx(
            fitted(pair, x, y)["generalization_risk"][0], rel=0.02
        )

    def test_independent_sigmoids_are_known_from_graph_or_loss(self):
        for activation, loss, known in [
            ("sigmoid", "binary_crossentropy", True),
            ("sigmoid", keras.losses.BinaryFocalCrossentropy(), True),
            (None, keras.losses.BinaryCrossentropy(from_logits=True), True),
            (None, keras.losses.CategoricalCrossentropy(from_logits=True), False),
            ("softmax", "binary_crossentropy", False),
            ("sigmoid", "sparse_categorical_crossentropy", False),
        ]:
            search = searching(classifier(3, activation), loss)
            assert search.generalization.independent_labels == known, (activation, loss)

    def test_several_labels_an_image(self):
        x, y = images()
        rows = np.eye(3, dtype="float32")[y]
        rows[:, 1] = 1.0
        search = searching(classifier(3, "sigmoid"), "binary_crossentropy", eta=10.0)
        fitted(search, x, rows)
        parts = search.generalization.teacher_parts
        feature = parts.backbone(x, training=False)
        with tf.GradientTape() as tape:
            tape.watch(feature)
            score = tf.reduce_sum(parts.head(feature)[0] * rows)
        alpha = tf.reduce_mean(tape.gradient(score, feature), (1, 2))
        expected = tf.nn.relu(tf.einsum("bhwc,bc->bhw", feature, alpha))
        got = search.generalization.teacher_maps(x, tf.constant(rows))
        np.testing.assert_allclose(got, expected, atol=1e-6)

    def test_labels_may_be_in_a_list(self):
        x, y = images()
        risks = []
        for labels in (y, [y]):
            keras.utils.set_random_seed(2)
            search = searching(classifier(), eta=10.0)
            risks.append(fitted(search, x, labels)["generalization_risk"][0])
        assert risks[0] > 0
        assert risks == [risks[0]] * 2

    def test_without_labels_the_remedy_is_named(self):
        search = searching(classifier(), eta=10.0)
        with pytest.raises(ValueError, match="attribution_class='predicted' or eta=0"):
            fitted(search, images()[0], None)


class Mirror(layers.Layer):
    """Somebody's augmentation, which Keras knows nothing of."""

    def call(self, x, training=False):
        if not training:
            return x
        mirrored = tf.random.uniform([tf.shape(x)[0], 1, 1, 1]) < 0.5
        return tf.where(mirrored, tf.reverse(x, [2]), x)


def positive(model):
    """No weight below zero: sums that hardly cancel are hardly off at 8 bits."""
    for layer in ("conv", "head"):
        for weight in model.get_layer(layer).weights:
            weight.assign(np.abs(weight))


def alike(search, seen, y, teacher_sees=None):
    """Share of images whose maps of hypernet and teacher have a cosine above 0.99."""
    _, ours = search.generalization.forward(seen, tf.constant(y))
    theirs = search.generalization.teacher_maps(
        seen if teacher_sees is None else teacher_sees, tf.constant(y)
    )
    ours, theirs = (np.reshape(maps, [len(y), -1]) for maps in (ours, theirs))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return np.mean((ours * theirs).sum(axis=1) > 0.99 * lengths)


FRONTS = {
    "flip": lambda: [layers.RandomFlip("horizontal", seed=1)],
    "several": lambda: [
        layers.RandomTranslation(0.3, 0.3, seed=1),
        layers.Rescaling(2.0),
        layers.GaussianNoise(0.02, seed=2),
    ],
    "nested": lambda: [
        keras.Sequential([layers.RandomFlip(seed=1), layers.RandomRotation(0.2)])
    ],
    "rescaled first": lambda: [layers.Rescaling(0.5), layers.RandomFlip(seed=1)],
    "custom": lambda: [Mirror()],
}


@pytest.mark.filterwarnings("ignore:Nothing is left", "ignore:.*are all zero")
class TestRandomLayers:
    @pytest.mark.parametrize("front", list(FRONTS))
    def test_teacher_and_hypernet_see_one_image(self, front):
        """At 8 bits the hypernet's maps are the teacher's, if its image is."""
        model = classifier(front=FRONTS[front]())
        positive(model)
        search = searching(model, eta=1.0, space=EIGHT)
        x, y = images()
        search.calibrate([x])
        moved = search.generalization.augmented(x)
        assert np.abs(keras.tree.flatten(moved)[0] - x).max() > 0.05
        assert alike(search, moved, y) > 0.8
        assert (
            alike(search, moved, y, teacher_sees=search.generalization.augmented(x))
            < 0.8
        )

    def test_augmentation_goes_on_in_training_and_not_in_inference(self):
        search = searching(classifier(front=FRONTS["flip"]()), eta=1.0)
        x, y = images()
        search.calibrate([x])
        assert (
            np.abs(
                search.generalization.augmented(x) - search.generalization.augmented(x)
            ).max()
            > 0.1
        )
        inferred = [search(x, training=False) for _ in range(2)]
        np.testing.assert_array_equal(*inferred)
        fitted(search, x, y)
        before = search.hypernet(x, training=False)
        np.testing.assert_allclose(search.predict(x, verbose=0), before, atol=1e-5)

    def test_dropout_and_noise_in_the_middle_are_the_hypernets_alone(self):
        noise = [layers.SpatialDropout2D(0.5), layers.GaussianNoise(0.3)]
        search = searching(classifier(middle=noise), eta=1.0)
        x, y = images()
        assert search.generalization.student_parts.front is None
        fitted(search, x, y)
        maps = [search.generalization.teacher_maps(x, tf.constant(y)) for _ in range(2)]
        np.testing.assert_array_equal(*maps)

    def test_a_random_layer_behind_weights_is_refused_by_name(self):
        model = classifier(middle=[layers.RandomFlip(name="flip_features")])
        with pytest.raises(GraphError, match="Received: flip_features"):
            PolicySearch(model, eta=1.0)
        PolicySearch(model, eta=0.0)

    def test_saved_and_loaded_search_still_augments_for_both(self, tmp_path):
        model = classifier(front=FRONTS["flip"]())
        positive(model)
        search = searching(model, eta=1.0, space=EIGHT)
        x, y = images()
        fitted(search, x, y)
        search.save(tmp_path / "s.keras")
        loaded = keras.models.load_model(tmp_path / "s.keras")
        assert loaded.generalization.student_parts.front is not None
        assert alike(loaded, loaded.generalization.augmented(x), y) > 0.8


class TestTaskRisk:
    @pytest.mark.parametrize("eta", [0.0, 10.0])
    def test_it_is_the_loss_and_the_students_own_penalties_once(self, eta):
        x, y = images()
        model = classifier(
            kernel_regularizer=keras.regularizers.L2(0.1),
            activity_regularizer=keras.regularizers.L1(0.01),
            middle=[layers.ActivityRegularization(l2=0.02)],
        )
        search = searching(model, eta=eta, zeta=0.0)
        got = fitted(search, x, y)["task_risk"][0]
        scores = search.hypernet(x, training=True)
        own = sum(float(each) for each in search.hypernet.losses)
        assert own > 0.01
        expected = float(SPARSE(y, scores)) + own
        assert got == pytest.approx(expected, rel=1e-5)
        evaluated = search.evaluate(x, y, batch_size=48, verbose=0)
        assert evaluated == pytest.approx(expected, rel=1e-3)


class TestWithoutTeacher:
    def test_nothing_of_a_teacher_is_held_or_saved(self, tmp_path):
        counts = []
        for eta in (0.0, 1.0):
            search = searching(classifier(), eta=eta)
            search.save_weights(tmp_path / f"{eta}.weights.h5")
            counts.append(search.count_params())
        assert counts[1] - counts[0] == classifier().count_params()
        small, large = (
            (tmp_path / f"{e}.weights.h5").stat().st_size for e in (0.0, 1.0)
        )
        assert small < large

    def test_files_that_hold_a_teacher_are_still_read(self, tmp_path):
        """As searches with eta=0 were saved before."""
        before, now = searching(classifier(), eta=1.0), searching(classifier(), eta=0.0)
        for variable in before.importance_variables:
            variable.assign(np.arange(variable.shape[0]))
        before.save_weights(tmp_path / "s.weights.h5")
        now.load_weights(tmp_path / "s.weights.h5")
        for ours, theirs in zip(
            now.hypernet.weights, before.hypernet.weights, strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def warnings_of(search, x, y, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(search, x, y, **options)
    ours = ("labels of the first", "attribution map")
    return [text for w in caught if any(o in (text := str(w.message)) for o in ours)]


class TestWarnings:
    @pytest.mark.parametrize("eager", [False, True])
    def test_teacher_without_maps(self, eager):
        model = classifier()
        x, y = images()
        kernel, bias = model.get_layer("head").get_weights()
        model.get_layer("head").set_weights([-np.abs(kernel), bias])
        search = searching(model, eta=1.0)
        search.run_eagerly = eager
        found = warnings_of(search, x, y, batch_size=16, epochs=3)
        assert len(found) == 1
        assert "100.0% of the teacher's attribution maps of the first 32" in found[0]
        assert "'feature' speaks for the class" in found[0]
        assert "0.0% for want of a class" in found[0]

    @pytest.mark.parametrize(
        ("change", "share"),
        [
            (lambda y: np.where(np.arange(48) < 12, -1, y), "37.5%"),
            (lambda y: y + 0.5, "100.0%"),
            (lambda y: y.astype("float64") * 10 + 10, "100.0%"),
        ],
        ids=["ignored", "fractions", "beyond"],
    )
    def test_labels_that_are_no_classes(self, change, share):
        x, y = images()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        def lenient(labels, scores):
            return loss(tf.clip_by_value(tf.cast(labels, tf.int32), 0, 2), scores)

        search = searching(classifier(), lenient, eta=1.0)
        found = warnings_of(search, x, change(y), batch_size=16, epochs=3)
        text = next(each for each in found if "no classes of the model" in each)
        assert f"{share} of the labels of the first 32 images" in text
        assert "0 to 2" in text

    def test_a_rare_wrong_label_is_found_by_the_end_of_the_epoch(self):
        x, y = images()
        y[47] = -1
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=-1
        )
        found = warnings_of(searching(classifier(), loss, eta=1.0), x, y, batch_size=16)
        assert any(
            "2.1% of the labels of the first 48 images" in each for each in found
        )

    def test_good_labels_and_maps_give_none(self):
        model = classifier()
        positive(model)
        assert warnings_of(searching(model, eta=1.0), *images(), epochs=2) == []
        assert warnings_of(searching(model, eta=0.0), *images()) == []

    def test_nothing_left_to_search(self):
        with pytest.warns(UserWarning, match="Nothing is left to search"):
            PolicySearch(classifier(), EIGHT)
        pinned = gmpq.SearchSpace(pinned={"conv": (8, 8), "head": (8, 8)})
        with pytest.warns(UserWarning, match="Nothing is left to search"):
            PolicySearch(classifier(), pinned)

    def test_no_layer_to_search(self):
        x = inputs = keras.Input((8, 8, 3))
        x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
        with pytest.raises(
            GraphError, match="Dense, Conv2DTranspose and Conv1DTranspose"
        ):
            PolicySearch(keras.Model(inputs, x))
