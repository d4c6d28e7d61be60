"""What tables of values are made of, against closed forms and brute force."""

from itertools import combinations, product

import keras
import numpy as np
import pytest

from gmpq_tf.search import StrategyError, search_policy
from gmpq_tf.search.activations import tied_pairs
from gmpq_tf.search.strategies.clado import semidefinite
from gmpq_tf.search.strategies.ompq import alignment, importances
from gmpq_tf.search.strategies.topological import (
    TopologicalEntropyConfig,
    as_graphs,
)
from gmpq_tf.search.topology import NEVER, birth, entropy, holes
from tests.search.toy import RIGHT, SPACE, toy_images, toy_model


def test_alignment_of_features():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 5))
    turned = features @ np.linalg.qr(rng.normal(size=(5, 5)))[0]
    centered = features - features.mean(axis=0)
    beside = np.linalg.svd(np.c_[centered, np.ones(20)])[0][:, 6:10]  # orthogonal to it
    found = alignment([x @ x.T for x in (features, 3 * turned + 1, beside)])
    np.testing.assert_allclose(found[:2, :2], 1, rtol=1e-9)
    np.testing.assert_allclose(found[2], [0, 0, 1], atol=1e-9)
    other = rng.normal(size=(20, 7))
    x, y = centered, other - other.mean(axis=0)
    own = [np.linalg.norm(a.T @ b) ** 2 for a, b in ((x, y), (x, x), (y, y))]
    wanted = own[0] / np.sqrt(own[1] * own[2])
    assert alignment([features @ features.T, other @ other.T])[0, 1] == pytest.approx(
        wanted
    )
    # The mean of exp(-beta sum) over a layer and those after it, largest 1.
    orm = np.array([[1, 0.5, 0.1], [0.5, 1, 0.2], [0.1, 0.2, 1]])
    theta = np.exp(-2 * np.array([0.6, 0.7, 0.3]))
    wanted = [theta[i:].mean() / theta.max() for i in range(3)]
    np.testing.assert_allclose(importances(orm, 2.0), wanted)


def ring(chord):
    weights = np.zeros((4, 4))
    for (a, b), value in zip(
        ((0, 1), (1, 2), (2, 3), (3, 0)), (4, 3, 2, 1), strict=True
    ):
        weights[a, b] = weights[b, a] = value
    weights[0, 2] = weights[2, 0] = chord
    return weights


def test_a_ring_has_a_hole_and_a_chord_fills_it():
    assert birth(ring(0), 5) == 4
    for chord in (1, 1.5, 2.5, 4):  # with the last edge of the ring, or before
        assert birth(ring(chord), 5) == NEVER
    assert birth(np.ones((5, 5)), 8) == NEVER


def betti(graph):
    """First Betti number, by ranks of signed boundaries over the rationals."""
    nodes = len(graph)
    edges = [e for e in combinations(range(nodes), 2) if graph[e]]
    triangles = [
        t
        for t in combinations(range(nodes), 3)
        if all(graph[e] for e in combinations(t, 2))
    ]
    first = np.zeros((nodes, len(edges)))
    for i, (a, b) in enumerate(edges):
        first[a, i], first[b, i] = -1, 1
    second = np.zeros((len(edges), len(triangles)))
    for i, (a, b, c) in enumerate(triangles):
        for edge, sign in (((b, c), 1), ((a, c), -1), ((a, b), 1)):
            second[edges.index(edge), i] = sign
    ranks = [np.linalg.matrix_rank(m) if m.size else 0 for m in (first, second)]
    return len(edges) - sum(ranks)


def test_births_by_ranks_of_boundaries():
    rng, seen = np.random.default_rng(0), []
    for _ in range(60):
        weights = rng.integers(0, 6, (8, 8)).astype(float)
        weights = np.maximum(weights, weights.T)
        low, high = (f(weights[np.triu_indices(8, 1)]) for f in (np.min, np.max))
        graphs = [weights >= high - s / 5 * (high - low) - 1e-9 for s in range(6)]
        first = next((s + 1 for s, g in enumerate(graphs) if betti(g)), NEVER)
        assert birth(weights, 6) == first
        seen.append(first)
        graph = graphs[3]
        bits = [sum(1 << int(b) for b in np.flatnonzero(row) if b != a)
                for a, row in enumerate(graph)]  # fmt: skip
        assert holes(bits) == betti(graph)
    assert len(set(seen)) > 2


def test_entropy_of_births():
    assert entropy(np.full(9, 3)) == 0
    assert entropy(np.tile(np.arange(5), 4)) == pytest.approx(np.log(5))


def test_maps_become_graphs():
    config = TopologicalEntropyConfig(map_channels=2, map_nodes=4)
    maps = np.random.default_rng(0).normal(size=(3, 8, 10, 5))
    graphs = as_graphs(maps, config)
    assert graphs.shape == (3, 2, 4, 4)
    means = maps[:, :8, :8].reshape(3, 4, 2, 4, 2, 5).mean(axis=(2, 4))
    means = np.moveaxis(means, -1, 1)[:, [0, 4]]
    np.testing.assert_allclose(graphs, np.maximum(means, means.swapaxes(2, 3)))
    for shape in ((3, 7), (3, 1, 1, 4), (3, 9, 4)):
        assert as_graphs(np.zeros(shape), config) is None


def test_pairs_without_negative_eigenvalues():
    tensors = [[((n, 0, b), 0.1 * b) for b in (2, 3)] for n in "abc"]
    none = {
        (x, y): 0.0
        for one, other in combinations(tensors, 2)
        for (x, _), (y, _) in product(one, other)
    }
    alone, pairs = semidefinite(tensors, none)  # risks that add up stay as they are
    assert alone == pytest.approx({c: r for own in tensors for c, r in own})
    assert set(pairs.values()) == {0.0} or max(map(abs, pairs.values())) < 1e-12
    rng = np.random.default_rng(3)
    mixed = {both: float(rng.normal()) for both in none}
    alone, pairs = semidefinite(tensors, mixed)
    choices = list(alone)
    # Nearest in the sum of squares: nothing that is better has no negative eigenvalue.
    for taken in product(*([c for c, _ in own] for own in tensors)):
        risk = sum(alone[c] for c in taken)
        risk += sum(pairs[both] for both in combinations(taken, 2))
        assert risk >= -1e-9
    assert len(choices) == 6 and semidefinite([], {}) == ({}, {})


def test_tied_candidates_are_the_nearest():
    candidates = {
        "same": ((2, 3, 4), (2, 3, 4)),
        "other": ((2, 4, 8), (3, 6)),
        "pinned": ((8,), (8,)),
        "half": ((2, 4), (8,)),
    }
    found = tied_pairs(candidates)
    assert found == {
        "same": ((2, 2), (3, 3), (4, 4)),
        "other": ((2, 3), (4, 3), (8, 6)),
    }


@pytest.mark.parametrize(
    ("strategy", "option", "value", "said"),
    [
        ("hawq", "activations", "tide", "Did you mean 'tied'"),
        ("fisher", "activations", "learned", "scored, tied, measured"),
        ("limpq", "activations", "learnt", "Did you mean 'learned'"),
        ("hawq", "probes", 0, "probes=0"),
        ("ompq", "feature_images", 1, "feature_images=1"),
        ("ompq", "beta", -1, "beta=-1"),
        ("topological_entropy", "map_nodes", 3, "map_nodes=3"),
        ("clado", "paired", -1, "paired=-1"),
        ("clado", "measure", "los", "Received: measure='los'"),
    ],
)
def test_options_that_cannot_be(strategy, option, value, said):
    with pytest.raises(StrategyError, match=said):
        search_policy(toy_model(), toy_images(), strategy, **{option: value})


def test_a_budget_that_tied_bits_exceed_is_refused_before_any_work():
    space = type(SPACE)((4, 8), (2, 4, 8), SPACE.pinned)
    for strategy in ("hawq", "clado", "ompq", "topological_entropy"):
        with pytest.raises(ValueError, match="activations='measured'"):
            search_policy(
                toy_model(),
                toy_images(),
                strategy,
                {"bit_ops": "W4A2"},
                space,
                activations="tied",
                progress="none",
            )


def test_inputs_follow_weights_that_have_no_choice():
    candidates = {
        "fixed": ((8,), (2, 4)),
        "narrow": ((2,), (3, 4)),
        "none": ((4,), (4,)),
    }
    assert tied_pairs(candidates) == {"fixed": ((8, 4),), "narrow": ((2, 3),)}


def test_weights_keep_their_values_where_activations_have_no_choice():
    """There is no range of activations that theirs could be scaled to."""
    result = search_policy(
        toy_model(),
        toy_images(16),
        "ompq",
        "W3A8",
        type(SPACE)((2, 3, 4), (8,), SPACE.pinned),
        feature_images=8,
        images=8,
        progress="none",
    )
    for name in RIGHT:
        values = result.values[name][0]
        assert values[2] > 0  # linear in the bits
        assert values[4] == pytest.approx(2 * values[2], rel=1e-6)


def test_features_without_maps_have_no_topology():
    inputs = keras.Input((8,))
    x = keras.layers.Dense(6, activation="relu", name="first")(inputs)
    x = keras.layers.Dense(6, activation="relu", name="middle")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="last")(x), name="flat")
    data = np.zeros((8, 8), "float32")
    with pytest.raises(StrategyError, match=r"'flat'.*strategy='ompq'"):
        search_policy(model, data, "topological_entropy", "W3A3", progress="none")


def test_maps_are_those_of_all_calls_and_images_those_of_the_class():
    """The first output is of numbers; a shared layer is called twice."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((8, 8, 2))
    first = keras.layers.Conv2D(2, 1, name="first")(inputs)
    shared = keras.layers.Conv2D(3, 3, padding="same", name="shared")
    x = shared(first)
    again = shared(keras.layers.Conv2D(2, 1, name="second")(x))
    pooled = keras.layers.GlobalAveragePooling2D()(again)
    numbers = keras.layers.Dense(4, name="numbers")(pooled)
    classes = keras.layers.Dense(3, activation="softmax", name="classes")(pooled)
    model = keras.Model(inputs, [numbers, classes])
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    images = rng.normal(size=(40, 8, 8, 2)).astype("float32")
    options = {"map_images": 12, "map_steps": 8}
    result = search_policy(
        model,
        images,
        "topological_entropy",
        "W3A3",
        type(SPACE)(pinned={"numbers": (8, 8), "classes": (8, 8)}),
        progress="none",
        calibration_images=40,
        **options,
    )
    said = np.argmax(model.predict(images, verbose=0)[1], axis=-1)
    taken = images[said == np.bincount(said).argmax()][:12]
    config = TopologicalEntropyConfig(**options)
    made = keras.Model(inputs, [x, again])(taken)
    graphs = np.concatenate([as_graphs(np.asarray(y), config) for y in made], axis=1)
    births = [[birth(own, 8) for own in image] for image in graphs]
    wanted = np.mean([entropy(own) for own in np.transpose(births)])
    values = result.values["shared"][0]
    assert wanted > 0
    assert values[4] / np.log2(4) == pytest.approx(wanted, rel=1e-6)
