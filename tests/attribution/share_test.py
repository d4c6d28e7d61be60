"""A share of each batch: every image as likely, the mean risk as of the whole."""

from itertools import pairwise

import keras
import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.attribution import batch_size, drawn_images, generalization_risk
from gmpq_tf.attribution.share import spread
from gmpq_tf.search import PolicySearch, RiskConfig
from gmpq_tf.search.risks import taken
from tests.search.policy_search_test import LOSS, classifier


@pytest.mark.parametrize(
    ("images", "count"), [(1, 1), (5, 1), (8, 2), (10, 3), (7, 6), (9, 9)]
)
def test_over_all_starts_each_image_comes_up_equally_often(images, count):
    places = np.stack([spread(start, count, images) for start in range(images)])
    assert all(len(set(row)) == count for row in places)
    np.testing.assert_array_equal(np.bincount(places.ravel()), [count] * images)


def test_the_mean_over_all_subsets_is_the_risk_of_the_batch():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((2, 10, 6, 6)).astype("float32")
    theirs[3] = 0.0  # counts nothing, and is an image of the batch all the same
    whole = generalization_risk(ours, theirs, tf.constant(1.5), 20)
    parts = [
        generalization_risk(
            *taken((ours, theirs), spread(start, 3, 10)), tf.constant(1.5), 20
        )
        for start in range(10)
    ]
    assert np.std(parts) > 0.05 * float(whole)
    assert np.mean(parts) == pytest.approx(float(whole), rel=1e-5)


def test_every_start_is_as_likely():
    """Counts of 12 starts in 1200 steps: 100 each, with a deviation of about 10."""
    starts = [int(drawn_images(12, 0.25, step)[0]) for step in range(1200)]
    counts = np.bincount(starts, minlength=12)
    assert counts.min() > 60 and counts.max() < 145
    followers = [b for a, b in pairwise(starts) if a == 0]
    assert len(set(followers)) > 8  # not one after the other


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("images", "share", "count"),
    [(12, 0.25, 3), (3, 0.25, 1), (1, 0.01, 1), (10, 0.25, 3), (7, 0.999, 7)],
)
def test_as_many_are_drawn_in_a_graph_for_any_batch(images, share, count, jit):
    @tf.function(
        input_signature=[tf.TensorSpec([None, 2]), tf.TensorSpec([], tf.int64)],
        jit_compile=jit,
    )
    def traced(batch, step):
        return tf.gather(batch, drawn_images(batch_size(batch), share, step))

    batch = np.arange(2.0 * images, dtype="float32").reshape(images, 2)
    here = drawn_images(batch_size(batch), share, 5)
    assert here.shape == [count]
    np.testing.assert_array_equal(traced(batch, 5), batch[here.numpy()])


def test_of_no_image_none_is_drawn():
    """A replica may get an empty share of the last batch."""
    assert drawn_images(0, 0.25, 1).shape == [0]
    assert drawn_images(tf.constant(0), 0.25, 1).shape == [0]


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, np.nan, True, "half"])
def test_shares_out_of_range_are_refused(share):
    with pytest.raises(ValueError, match="Received: attribution_share="):
        RiskConfig(attribution_share=share)


def searching(share, rate=0.0, jit=False, **options):
    keras.utils.set_random_seed(4)
    search = PolicySearch(classifier(), eta=10.0, attribution_share=share, **options)
    search.compile(
        keras.optimizers.SGD(rate),
        keras.optimizers.SGD(rate),
        loss=LOSS["logits"],
        jit_compile=jit,
    )
    return search


def images(count=20):
    rng = np.random.default_rng(1)
    x = rng.random((count, 8, 8, 1)).astype("float32")
    return x, rng.integers(0, 3, count)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are all zero")
@pytest.mark.parametrize(
    ("jit", "options"),
    [
        (False, {}),
        (False, {"attribution_class": "predicted"}),
        (True, {"attribution_class": "predicted"}),
        pytest.param(True, {}, marks=pytest.mark.slow),
    ],
)
def test_a_step_is_that_of_the_images_drawn(jit, options):
    """Their maps as those of the whole batch, of whose statistics they are."""
    search, (x, y) = searching(0.25, jit=jit, **options), images()
    history = search.fit(x, y, batch_size=20, verbose=0, shuffle=False).history
    whole = searching(1.0, jit=jit, **options)
    guide, drawn = whole.generalization, drawn_images(20, 0.25, 0).numpy()
    whole.calibrate([x])
    theirs = guide.teacher_maps(x, tf.constant(y)).numpy()[drawn]
    output, maps = guide.forward(x, tf.constant(y))
    risk = generalization_risk(maps.numpy()[drawn], theirs, whole.exponent(), 1000)
    assert len(drawn) == 5
    assert float(risk) > 0
    assert history["generalization_risk"][0] == pytest.approx(float(risk), rel=1e-3)
    assert history["task_risk"][0] == pytest.approx(
        float(LOSS["logits"](y, output)), rel=1e-4
    )
    assert search.generalization.map_count.result()[0] == 5  # the teacher saw no more


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are all zero")
def test_the_mean_of_many_steps_is_the_mean_of_their_draws():
    """Drawn equally often, the subsets have the risk of the batch as their mean."""
    x, y = images(8)
    data = tf.data.Dataset.from_tensors((x, y)).repeat(40)
    whole = searching(1.0)
    whole.calibrate([x])
    guide = whole.generalization
    maps = guide.forward(x, tf.constant(y))[1], guide.teacher_maps(x, tf.constant(y))
    risks = [
        float(generalization_risk(*taken(maps, spread(s, 2, 8)), whole.exponent()))
        for s in range(8)
    ]
    starts = [int(drawn_images(8, 0.25, step)[0]) for step in range(40)]
    expected = {0.25: np.mean([risks[s] for s in starts]), 1.0: np.mean(risks)}
    for share, risk in expected.items():
        history = searching(share).fit(data, verbose=0).history
        assert history["generalization_risk"][0] == pytest.approx(risk, rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*are all zero")
def test_a_saved_search_keeps_its_share_and_goes_on_drawing(tmp_path):
    x, y = images()
    search = searching(0.5, rate=0.1)
    search.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    search.save(tmp_path / "search.keras")
    loaded = keras.models.load_model(tmp_path / "search.keras")
    assert loaded.risk.attribution_share == 0.5
    histories = [
        each.fit(x, y, batch_size=8, verbose=0, shuffle=False).history
        for each in (search, loaded)
    ]
    assert histories[0] == histories[1]
