"""Each method of calibration against arithmetic written out here."""

import math

import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.quantizers import InputQuantizer
from gmpq_tf.transform.calibrate import Observer, best_grid, input_quantizers
from gmpq_tf.transform.ranges import RANGE_METHODS, Percentile, SeenValues
from tests.transform.models import MODELS, batch_of, plain

BITS = (2, 3, 4, 8)


def heavy_tailed(seed=0, size=3000):
    """Positive and negative values, many zeros, a few far out."""
    random = np.random.default_rng(seed)
    values = random.standard_t(2, size)
    values[random.random(size) < 0.3] = 0
    return values.astype("float32")


def least_squares(values, limit, low):
    """The least error over a fine grid of steps; any better one must be this near."""

    def error(step):
        codes = np.clip(np.round(values / step), low, limit)
        return np.square(codes * step - values).mean()

    largest = np.abs(values).max()
    return error, min(error(s) for s in np.geomspace(0.02, 1, 2000) * largest / limit)


def percentile(values, percent):
    """Linear between the two values nearest in order."""
    ordered = sorted(abs(float(v)) for v in values)
    place = percent / 100 * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def kl_of(counts, kept, levels):
    """Loops after Migacz's slides."""
    p = [float(c) for c in counts[:kept]]
    q = [0.0] * kept
    p[-1] += float(sum(counts[kept:]))
    for level in range(levels):
        members = [i for i in range(kept) if i * levels // kept == level]
        total = sum(float(counts[i]) for i in members)
        filled = [i for i in members if p[i] > 0]
        for i in filled:
            q[i] = total / len(filled)
    if not sum(q):
        return math.inf
    found = 0.0
    for a, b in zip(p, q, strict=True):
        if a:
            found += a / sum(p) * math.log(a / sum(p) / max(b / sum(q), 1e-12))
    return found


def entropy_steps(values, limit):
    """(threshold over limit, its divergence) of every threshold that may be chosen."""
    sizes = np.abs(values[values != 0])
    counts, edges = np.histogram(sizes, 2048, (0, sizes.max()))
    kept = sorted({int(k) for k in np.linspace(max(limit + 1, 40), 2048, 128)})
    return [(edges[k] / limit, kl_of(counts, k, limit + 1)) for k in kept[::9]]


def step_by(method, values, bits, signed, power_of_two=False):
    observer = Observer(0)
    observer.low, observer.high = float(values.min()), float(values.max())
    observer.samples = [values]
    quantizer = InputQuantizer(bits, signed, power_of_two=power_of_two)
    step, zero = best_grid(observer, quantizer, 0, False, RANGE_METHODS[method])
    assert zero == 0
    return step


def check_squared_error(values, step, limit, low):
    error, least = least_squares(values, limit, low)
    assert error(step) <= 1.05 * least


def check_max(values, step, limit, low):
    assert step == pytest.approx(np.abs(values).max() / limit, rel=1e-6)


def check_percentile(values, step, limit, low):
    # the sample holds both extremes twice: those of the values, and as extremes
    values = [*values, values.min(), values.max()]
    assert step == pytest.approx(percentile(values, 99.99) / limit, rel=1e-5)


def check_entropy(values, step, limit, low):
    sizes = np.abs(values)
    kept = round(float(step * limit / sizes.max() * 2048))
    seen = np.concatenate([values, [min(values.min(), 0), values.max()]])
    sizes = np.abs(seen[seen != 0])
    counts = np.histogram(sizes, 2048, (0, sizes.max()))[0]
    mine = kl_of(counts, kept, limit + 1)
    assert all(mine <= other + 1e-9 for _, other in entropy_steps(seen, limit))


# A row of RANGE_METHODS without a case here fails.
CASES = {
    "squared_error": check_squared_error,
    "max": check_max,
    "percentile": check_percentile,
    "entropy": check_entropy,
}


@pytest.mark.parametrize("method", sorted({*RANGE_METHODS, *CASES}))
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_step_is_that_of_the_definition(method, bits, signed):
    values = heavy_tailed()
    values = values if signed else np.maximum(values, 0)
    limit = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    step = step_by(method, values, bits, signed)
    CASES[method](values, step, limit, -limit - 1 if signed else 0)


@pytest.mark.parametrize("method", sorted(RANGE_METHODS))
@pytest.mark.parametrize("bits", BITS)
def test_nested_grids_get_powers_of_two(method, bits):
    step = step_by(method, heavy_tailed(), bits, True, power_of_two=True)
    assert math.log2(step) == round(math.log2(step))
    free = step_by(method, heavy_tailed(), bits, True)
    if method != "squared_error":  # which searches among the powers themselves
        assert abs(math.log2(step / free)) <= 0.5 + 1e-9


@pytest.mark.parametrize("reach", [0.5, 0.596, 0.7, 0.99, 1.3])
@pytest.mark.parametrize("bits", [4, 8])
def test_no_power_of_two_is_better(bits, reach):
    """Of values up to 0.596 the power nearest to a step of 8 bits clips a sixth."""
    values = np.random.default_rng(0).uniform(-reach, reach, 20_000).astype("float32")
    limit = 2 ** (bits - 1) - 1
    error, _ = least_squares(values, limit, -limit - 1)
    step = step_by("squared_error", values, bits, True, power_of_two=True)
    assert error(step) == min(error(2.0**power) for power in range(-20, 4))


@pytest.mark.parametrize("method", sorted(RANGE_METHODS))
@pytest.mark.parametrize("value", [3.0, 1e-3])
def test_one_value_and_zeros_keep_that_value(method, value):
    """Of nearly all zeros, a percentile says nothing."""
    values = np.zeros(100_000, "float32")
    values[7] = value
    step = step_by(method, values, 8, False)
    assert 0.9 * value <= step * 255 <= 1.1 * value


def test_default_is_what_it_was():
    model, ranges = plain(), []
    for arguments in ({}, {"method": "squared_error"}, {"method": "max"}):
        student = gmpq.quantize_model(model, BitwidthPolicy.uniform(model, 4, 4))
        gmpq.calibrate(student, batch_of(model), **arguments)
        ranges.append([float(q.log2_range[0]) for q in input_quantizers(student)])
    assert ranges[0] == ranges[1] != ranges[2]


@pytest.mark.parametrize("method", sorted(RANGE_METHODS))
@pytest.mark.parametrize("name", ["residual", "two_inputs_two_outputs"])
def test_every_range_of_students_and_hypernets_is_set(method, name):
    model = MODELS[name]()
    policy = BitwidthPolicy.uniform(model, 4, 4)
    for made in (gmpq.quantize_model(model, policy), gmpq.build_hypernet(model)):
        gmpq.calibrate(made, batch_of(model), method=method)
        for quantizer in input_quantizers(made):
            assert float(quantizer.calibrated)
            assert np.isfinite(quantizer.log2_range).all()


def test_methods_of_ones_own():
    model = plain()
    student = gmpq.quantize_model(model, BitwidthPolicy.uniform(model, 4, 4))
    gmpq.calibrate(student, batch_of(model), method=Percentile(50.0))
    half = student.get_layer("middle").input_quantizer.step()
    gmpq.calibrate(student, batch_of(model), method=lambda seen: 0.25)
    assert student.get_layer("middle").input_quantizer.step() == pytest.approx(0.25)
    tapped = keras.Model(model.inputs, model.get_layer("first").output)
    values = np.asarray(tapped(batch_of(model)))
    assert 0 < half * 15 < np.percentile(values, 60)


@pytest.mark.parametrize("wrong", ["percentil", "entropie", "MSE"])
def test_unknown_names_are_answered(wrong):
    student = gmpq.quantize_model(plain(), BitwidthPolicy.uniform(plain(), 4, 4))
    with pytest.raises(ValueError, match=r"Unknown calibration method.*Received"):
        gmpq.calibrate(student, batch_of(student), method=wrong)


@pytest.mark.parametrize("percent", [0, -1, 100.1, math.nan])
def test_impossible_percentages_are_refused(percent):
    with pytest.raises(ValueError, match="Received: percent"):
        Percentile(percent)


def test_seen_values_scale():
    """Every method is of one degree: twice the values, twice the step."""
    values = np.abs(heavy_tailed())
    for method in RANGE_METHODS.values():
        steps = []
        for factor in (1, 2):
            scaled = values * np.float32(factor)

            def fit(tried, scaled=scaled):
                return min(
                    tried,
                    key=lambda s: np.square(
                        np.clip(np.round(scaled / s), 0, 15) * s - scaled
                    ).sum(),
                )

            seen = SeenValues(scaled, float(scaled.max()), 15, False, fit)
            steps.append(method(seen))
        assert steps[1] == pytest.approx(2 * steps[0])
