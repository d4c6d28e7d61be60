"""What budgets mean, as people say them, and that policies keep them."""

import re
from fractions import Fraction
from itertools import product
from pathlib import Path

import keras
import numpy as np
import pytest

import gmpq_tf as gmpq
from gmpq_tf.budget import BudgetError, parse_budget
from gmpq_tf.cost import count_cost
from gmpq_tf.cost_tables import CostTable, TableOptions, bit_ops_table, cost_table
from gmpq_tf.export.tflite.lowering import lower
from gmpq_tf.export.tflite.metadata import facts
from gmpq_tf.graph import layer_macs
from gmpq_tf.latency import LatencyTable, MeasuredModel
from gmpq_tf.latency_cost import is_uniform
from gmpq_tf.limits import Limit, resolve_limit
from gmpq_tf.models import load_model
from gmpq_tf.policy.draw import draw_bits
from gmpq_tf.quantizers import KERNEL_QUANTIZERS
from gmpq_tf.quantizers.kernel_method import GridKernel
from gmpq_tf.quantizers.kernel_quantizer import kernel_method
from gmpq_tf.search.knapsack import check_limits, most_probable_bits

layers = keras.layers
MACS = {"a": 1000, "b": 300, "c": 77}
SIZES = {"a": 50, "b": 900, "c": 400}
CANDIDATES = dict.fromkeys(MACS, ((2, 3, 4), (2, 4)))


def bytes_table():
    grid = {n: [[b * s / 8] * 7 for b in range(2, 9)] for n, s in SIZES.items()}
    return CostTable("weight_bytes", "bytes", grid, 100, 4 * 1450)


def every_policy():
    pairs = list(product((2, 3, 4), (2, 4)))
    return [dict(zip(MACS, c, strict=True)) for c in product(pairs, repeat=3)]


@pytest.mark.parametrize(
    ("said", "resource", "amount", "fraction"),
    [
        (0.01, "bit_ops", 0.01, True),
        (1, "bit_ops", 1, True),
        (5e6, "bit_ops", 5e6, False),
        ("0.01", "bit_ops", 0.01, True),
        (np.float32(0.5), "bit_ops", 0.5, True),
        ("5%", "bit_ops", 0.05, True),
        ("0.5GBOPs", "bit_ops", 5e8, False),
        ("0.5 Gbops", "bit_ops", 5e8, False),
        ("60kB", "file_bytes", 60_000, False),
        (" 60 kB ", "file_bytes", 60_000, False),
        ("1.5MB", "file_bytes", 1_500_000, False),
        ("60000B", "file_bytes", 60_000, False),
        ("60KiB", "file_bytes", 61_440, False),
        ("2.5ms", "latency_ms", 2.5, False),
        ("1s", "latency_ms", 1000, False),
        ("weight_bytes=60kB", "weight_bytes", 60_000, False),
        ({"latency_ms": 0.5}, "latency_ms", 0.5, False),
        ({"weight_bytes": "20%"}, "weight_bytes", 0.2, True),
        ("50%", "bit_ops", 0.5, True),
        ("0.5", "bit_ops", 0.5, True),
        ("0.06MB", "file_bytes", 60_000, False),
        ("2.5 ms", "latency_ms", 2.5, False),
        ("file_bytes = 60 kB", "file_bytes", 60_000, False),
    ],
)
def test_budgets_people_say(said, resource, amount, fraction):
    (budget,) = parse_budget(said)
    assert (budget.resource, budget.fraction) == (resource, fraction)
    assert budget.amount == pytest.approx(amount)


def test_a_uniform_policy_may_be_said_inputs_first():
    assert parse_budget("A4W2")[0].bits == parse_budget("W2A4")[0].bits == (2, 4)


@pytest.mark.parametrize(("unit", "scale"), [("kB", 10**3), ("MB", 10**6)])
def test_decimals_are_what_is_written(unit, scale):
    """In binary 0.000498 * 1e6 is less than 498."""
    for amount in range(1, 6000, 7):
        said = f"{amount / scale:.6f}"
        assert Fraction(parse_budget(said + unit)[0].amount) == Fraction(said) * scale
    assert parse_budget("250us")[0].amount == 0.25
    table = CostTable("weight_bytes", "bytes", {}, full=300)
    for share in range(1, 101):
        (budget,) = parse_budget({"weight_bytes": f"{share}%"})
        assert resolve_limit(budget, table, {}).budget == 3 * share


@pytest.mark.parametrize("of", ["bit operations", "ms", "fixed", "fraction"])
def test_the_least_that_is_told_is_kept_when_it_is_given(of):
    for macs in range(101, 1201, 11):
        table, space = bit_ops_table({"a": 997 * macs}, 10**6), {"a": ((3, 4), (5, 7))}
        if of == "fixed":
            space = {"a": ((3,), (5,))}
        if of == "ms":
            grid = {"a": np.outer(range(2, 9), np.full(7, macs / 997))}
            table = CostTable("latency_ms", "ms", grid)
        with pytest.raises(BudgetError) as refused:
            resolve_limit(parse_budget({table.resource: 1e-9})[0], table, space)
        told = re.search(
            r"(?:reaches|costs) (\S+)(?: to \S+)? (\w+)", str(refused.value)
        )
        said = "".join(told.groups())
        if of == "fraction":
            said = re.search(r"fractions (\S+)", str(refused.value))[1]
        (budget,) = parse_budget({table.resource: said})
        low = table.range(space)[0]
        assert low <= resolve_limit(budget, table, space).budget < 1.001 * low


@pytest.mark.parametrize("said", ["W4A4,60kB", ["W4A4", "60kB"], ("w4/a4", "60 kB")])
def test_several_at_once(said):
    first, second = parse_budget(said)
    assert (first.resource, first.bits) == ("bit_ops", (4, 4))
    assert (second.resource, second.amount) == ("file_bytes", 60_000)


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("60 kb", "60kB"),
        ("60KB", "60kB"),
        ("2.5MS", "2.5ms"),
        ("W9A4", "W8A4"),
        ("W1A4", "W2A4"),
        ("4W", "W4A4"),
        ("W4", "W4A4"),
        ("ms", "Give such as"),
        ("", "Give such as"),
        ("W4A4,", "Give such as"),
        ("\uff16\uff10kB", "Give such as"),
        ("60kB!", "Give such as"),
        ("-60kB", "above 0"),
        (-1, "above 0"),
        (0, "above 0"),
        (float("nan"), "above 0"),
        (float("inf"), "above 0"),
        ("1e999", "above 0"),
        (True, "Give such as"),
        ([], "Give such as"),
        ({}, "Give such as"),
        (object(), "Give such as"),
        ({3: 4}, "name of a resource"),
        ("W4A4,5%", "one budget"),
        ("60kB,70kB", "one budget"),
        ("60 KB", "60kB"),
        ("60kb/s", "Give such as"),
        ("A9W4", "W4A8"),
        ("W4A4 60kB", "several with commas"),
        ("1,5MB", "'1.5MB'"),
        ("60,000B", "'60000B'"),
        ("W4A4,60,000B", "'60000B'"),
        ("file_bytes=60,000B", "'60000B'"),
        ("0,5", "put a space: '0, 5'"),
        ("0%", "above 0"),
        ("0kB", "above 0"),
        ("x" * 10_000, "Give such as"),
    ],
)
def test_nonsense_is_refused_with_a_remedy(said, hint):
    with pytest.raises(BudgetError, match="Received: budget") as error:
        parse_budget(said)
    assert hint in str(error.value) and len(str(error.value)) < 500


def test_table_against_its_definition():
    table, rng = bit_ops_table(MACS, 500), np.random.default_rng(0)
    costs = [table.cost(policy) for policy in every_policy()]
    assert table.range(CANDIDATES) == (min(costs), max(costs))
    assert table.full == 1377 * 1024 + 500
    chances = {n: (rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(2))) for n in MACS}
    mean = 0.0
    for policy, cost in zip(every_policy(), costs, strict=True):
        chance = 1.0
        for name, (w, a) in policy.items():
            weights, inputs = chances[name]
            chance *= weights[(2, 3, 4).index(w)] * inputs[(2, 4).index(a)]
        mean += chance * cost
    assert table.expected(chances, CANDIDATES) == pytest.approx(mean)
    assert table.uniform(4, 3, {}) == 12 * 1377 + 500
    assert table.uniform(4, 3) == 12 * 300 + 64 * 1077 + 500


@pytest.mark.parametrize("seed", range(6))
def test_several_limits_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    chances = {n: (rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(2))) for n in MACS}
    limits = [Limit(bit_ops_table(MACS), 14_000), Limit(bytes_table(), 600)]
    kept = [
        policy
        for policy in every_policy()
        if all(each.table.cost(policy) <= each.budget for each in limits)
    ]
    found = most_probable_bits(chances, CANDIDATES, limits)
    assert found in kept
    most = max(limits[0].table.cost(policy) for policy in kept)
    least = min(0.97 * 14_000, 0.97 * most)
    assert limits[0].table.cost(found) >= least

    def value(policy):
        return sum(
            np.log(chances[n][0][(2, 3, 4).index(w)])
            + np.log(chances[n][1][(2, 4).index(a)])
            for n, (w, a) in policy.items()
        )

    near = [policy for policy in kept if limits[0].table.cost(policy) >= least]
    best = max(near, key=value)
    raised = [p >= q for n in MACS for p, q in zip(found[n], best[n], strict=True)]
    assert all(raised)
    drawn = draw_bits(CANDIDATES, limits, seed)
    assert drawn in kept


def test_limits_that_exclude_each_other_are_named():
    """More bits here cost less there: each can be kept alone."""
    falling = CostTable(
        "latency_ms", "ms", {n: -np.outer(range(2, 9), np.ones(7)) + 9 for n in MACS}
    )
    limits = [Limit(bit_ops_table(MACS), 9000), Limit(falling, 15.5)]
    with pytest.raises(BudgetError, match=r"bit_ops of at most .* and latency_ms"):
        check_limits(CANDIDATES, limits)
    check_limits(CANDIDATES, [Limit(bit_ops_table(MACS), 30_000), limits[1]])


def small(filters=32):
    inputs = x = keras.Input((8, 8, 3))
    for number in range(3):
        x = layers.Conv2D(
            filters, 3, padding="same", use_bias=False, name=f"c{number}"
        )(x)
        x = layers.BatchNormalization(name=f"b{number}")(x)
        x = layers.ReLU(name=f"r{number}")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name="small")


def residual():
    inputs = keras.Input((8, 8, 3))
    stem = layers.ReLU(max_value=6, name="r")(
        layers.Conv2D(16, 3, padding="same", name="stem")(inputs)
    )
    x = layers.DepthwiseConv2D(3, padding="same", name="depth")(stem)
    x = layers.Conv2D(16, 1, name="point")(layers.ReLU(name="r2")(x))
    x = layers.Add(name="add")([stem, x])
    x = layers.Conv2D(48, 3, padding="same", strides=2, name="last")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name="residual")


def dense():
    inputs = keras.Input((40,))
    x = layers.Dense(65, "relu", name="a")(inputs)
    x = layers.Dense(64, "relu", name="b")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name="dense")


def transposed():
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(32, 3, padding="same", strides=2, activation="relu", name="a")(x)
    x = layers.Conv2DTranspose(
        32, 3, strides=2, padding="same", use_bias=False, name="up"
    )(x)
    x = layers.ReLU(name="r")(layers.BatchNormalization(name="norm")(x))
    return keras.Model(inputs, layers.Conv2D(5, 1, name="head")(x), name="transposed")


def file_of(model, policy, storage, class_names=(), **quantizers):
    """What `gmpq-export` writes of a model after training."""
    rng = np.random.default_rng(0)
    student = gmpq.quantize_model(model, policy, **quantizers)
    for weight in student.weights:
        if weight.path.rpartition("/")[2] in ("bias", "beta", "gamma", "moving_mean"):
            weight.assign(np.asarray(weight) + rng.uniform(0.01, 0.1, weight.shape))
    gmpq.calibrate(student, rng.normal(size=(16, *model.input_shape[1:])))
    metadata = {
        "input_scaling": {"kind": "0..1"},
        "class_names": list(class_names) or [f"class {i}" for i in range(5)],
        "policy": {"model": model.name, "layers": {n: [8, 8] for n in policy}},
    }
    known = facts(class_names)
    return len(lower(student, storage, metadata=metadata, known=known).content)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("make", [small, residual, dense, transposed])
@pytest.mark.parametrize("storage", ["fast", "packed", "smallest"])
def test_file_bytes_are_never_below_the_file_and_near_it(make, storage):
    keras.utils.set_random_seed(0)
    model = make()
    table = cost_table("file_bytes", model, TableOptions(storage))
    policies = [
        gmpq.BitwidthPolicy.uniform(model, *b) for b in ((8, 8), (4, 3), (2, 2))
    ]
    rng = np.random.default_rng(1)
    for _ in range(3):
        drawn = {n: tuple(map(int, rng.integers(2, 9, 2))) for n in table.layers}
        policies.append(gmpq.BitwidthPolicy(model.name, drawn, {}))
    for policy in policies:
        size = file_of(model, policy, storage)
        # Some hundred bytes are kept for metadata; these models are tiny.
        assert size <= table.cost(policy) <= 1.02 * size + 900


def test_file_bytes_make_room_for_the_names_of_the_classes():
    keras.utils.set_random_seed(0)
    model = small()
    names = tuple(f"{i} " + "a class of a long name " * 4 for i in range(5))
    policy = gmpq.BitwidthPolicy.uniform(model, 4, 4)
    size = file_of(model, policy, "packed", names)
    short = cost_table("file_bytes", model, TableOptions("packed"))
    told = cost_table("file_bytes", model, TableOptions("packed", class_names=names))
    assert short.cost(policy) < size <= told.cost(policy) <= size + 700


def test_file_bytes_ask_the_kernel_quantizer_for_its_codes():
    """APoT kernels of 4 bits have codes up to 10, which INT4 does not hold."""
    keras.utils.set_random_seed(0)
    model = dense()
    policy = gmpq.BitwidthPolicy.uniform(model, 4, 4, {})
    size = file_of(model, policy, "packed", kernel_quantizer="apot")
    uniform = cost_table("file_bytes", model, TableOptions("packed"))
    apot = cost_table("file_bytes", model, TableOptions("packed", None, "apot"))
    assert uniform.cost(policy) < size <= apot.cost(policy) <= 1.02 * size + 900
    search = gmpq.PolicySearch(
        model,
        gmpq.SearchSpace((2, 4), (4,), pinned={}),
        budget=f"{size + 900}B",
        storage="packed",
        kernel_quantizer="apot",
        eta=0.0,
    )
    assert search.limits[0].table.cost(policy) == apot.cost(policy)


def test_milliseconds_are_those_of_uniform_kernels():
    options = TableOptions("packed", "latency.json", "apot")
    with pytest.raises(BudgetError, match=r"kernel_quantizer='apot'.*lsq, max_abs"):
        cost_table("latency_ms", dense(), options)


class Coarse(GridKernel):
    """Whole numbers of half as many steps a side: another type in files."""

    def largest_code(self, bits):
        return max(1, (2 ** (bits - 1) - 1) // 2)


def test_who_has_uniform_kernels_is_asked_of_the_row(monkeypatch):
    """Nobody keeps a list of names of those that gmpq-latency has timed."""
    assert {n for n in KERNEL_QUANTIZERS if is_uniform(kernel_method(n))} == {
        "lsq",
        "max_abs",
        "rq",
    }
    monkeypatch.setitem(KERNEL_QUANTIZERS, "own", lambda kernel, step, bits: kernel)
    monkeypatch.setitem(KERNEL_QUANTIZERS, "coarse", Coarse())
    assert is_uniform(kernel_method("own")) and not is_uniform(Coarse())
    options = TableOptions("packed", "missing.json", "coarse")
    with pytest.raises(BudgetError, match=r"'coarse'.*lsq, max_abs, own, rq"):
        cost_table("latency_ms", dense(), options)
    options = TableOptions("packed", "missing.json", "own")
    with pytest.raises(BudgetError, match=r"missing\.json"):
        cost_table("latency_ms", dense(), options)


def test_a_uniform_policy_is_a_budget_of_its_cost():
    model = small()
    cost = count_cost(model, gmpq.BitwidthPolicy.uniform(model, 3, 4)).bit_ops
    search = gmpq.PolicySearch(model, budget="W3A4", eta=0.0)
    assert search.budget == cost == search.limits[0].budget
    assert (
        gmpq.BitwidthPolicy.random(model, budget="W3A4").made_by["config"]["limits"][0][
            "limit"
        ]
        == cost
    )


def images(count=32):
    rng = np.random.default_rng(0)
    return rng.random((count, 8, 8, 3), "float32"), rng.integers(0, 5, count)


def searched(model, **options):
    search = gmpq.PolicySearch(model, eta=0.0, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    search.compile(keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.1), loss=loss)
    history = search.fit(*images(), batch_size=16, epochs=3, verbose=0).history
    return search, history


@pytest.mark.slow
def test_a_search_keeps_bit_operations_and_the_size_of_the_file(tmp_path):
    model = small()
    table = cost_table("file_bytes", model, TableOptions("smallest"))
    limit = int(table.uniform(4, 4) - 1000)
    search, history = searched(model, budget=("W4A4", f"{limit}B"))
    assert {"zeta", "zeta_file_bytes", "expected_bit_ops"} <= set(history)
    assert {"expected_file_bytes", "complexity_risk_file_bytes"} <= set(history)
    policy = search.policy()
    assert count_cost(model, policy).bit_ops <= search.budget
    assert file_of(model, policy, "smallest") <= limit
    records = policy.made_by["config"]["limits"]
    assert [r["said"] for r in records] == ["W4A4", f"{limit}B"]
    assert all(r["cost"] <= r["limit"] for r in records)
    search.save(tmp_path / "search.keras")
    again = keras.models.load_model(tmp_path / "search.keras")
    assert [float(r.zeta) for r in again.risks] == [float(r.zeta) for r in search.risks]
    assert again.policy() == policy


def test_a_budget_of_the_file_alone_guides_the_search():
    model = small()
    table = cost_table("file_bytes", model, TableOptions("smallest"))
    low, high = table.range(gmpq.SearchSpace((2, 4)).candidates(model))
    search, history = searched(
        model, space=gmpq.SearchSpace((2, 4)), budget=f"{int((low + high) / 2)}B"
    )
    assert {"zeta", "expected_file_bytes", "expected_bit_ops"} <= set(history)
    assert low <= table.cost(search.policy()) <= (low + high) / 2


def test_a_budget_that_no_bits_can_change():
    with pytest.raises(BudgetError, match="whatever its bits"):
        gmpq.PolicySearch(small(), budget="1kB", storage="fast", eta=0.0)
    search = gmpq.PolicySearch(small(), budget="1MB", storage="fast", eta=0.0)
    assert search.limits[0].table.is_fixed(search.candidates)


def test_one_budget_by_one_name():
    with pytest.raises(BudgetError, match="given once"):
        gmpq.PolicySearch(small(), budget="W4A4", bit_ops_budget=0.01)
    with pytest.raises(BudgetError, match="weight_bytes"):
        gmpq.PolicySearch(small(), budget={"weight_byte": 1e5})


def test_activation_bytes_are_the_largest_neighbours_and_no_bits_change_them():
    model = dense()
    table = cost_table("activation_bytes", model, TableOptions("fast"))
    # While the input is put in codes both are alive, of 4 bytes and 1 a number; later
    # at most 65 + 64 codes are. Each tensor begins at a multiple of 16 bytes.
    assert table.range(gmpq.SearchSpace().candidates(model)) == (160 + 48, 160 + 48)
    with pytest.raises(BudgetError, match="whatever its bits"):
        gmpq.PolicySearch(model, budget={"activation_bytes": "150B"}, eta=0.0)


def test_milliseconds_are_those_of_the_measured_table(tmp_path):
    model = small()
    with pytest.raises(BudgetError, match="gmpq-latency"):
        gmpq.PolicySearch(model, budget="2.5ms", eta=0.0)
    macs = layer_macs(model)
    keys = {n: {w: (f"{n}{w}", "shared") for w in ("8", "4", "2")} for n in macs}
    rows = {f"{n}{w}": float(w) for n in macs for w in ("8", "4", "2")}
    measured = LatencyTable(
        "desk", 1, {"name": "LiteRT", "version": "2"}, "x86_64", "2026-01-01",
        {**rows, "shared": 0.5, "rest": 3.0},
        (MeasuredModel("small", macs, keys, ("rest", "shared")),),
    )  # fmt: skip
    measured.save(tmp_path / "latency.json")
    options = TableOptions("packed", str(tmp_path / "latency.json"))
    table = cost_table("latency_ms", model, options)
    assert table.uniform(8, 8) == 3.5 + 4 * 8.5
    assert table.uniform(3, 2) == 3.5 + 2 * 8.5 + 2 * 4.5
    search = gmpq.PolicySearch(
        model,
        gmpq.SearchSpace((3, 8), (4,)),
        budget="34 ms",
        storage="packed",
        latency_table=options.latency_table,
        eta=0.0,
    )
    assert 0.97 * 34 < table.cost(search.policy()) + 0.5 <= 34.5


def test_a_budget_of_milliseconds_from_a_table_that_was_measured():
    path = Path(__file__).parents[1] / "results" / "latency" / "resnet8.json"
    model = load_model("resnet8", (32, 32, 3), 10)
    space = gmpq.SearchSpace((2, 4, 8), (4, 8))
    options = TableOptions("packed", str(path))
    table = cost_table("latency_ms", model, options)
    low, high = table.range(space.candidates(model))
    most = low + 0.4 * (high - low)
    search = gmpq.PolicySearch(
        model,
        space,
        budget=(f"{most}ms", "W8A8"),
        storage="packed",
        latency_table=str(path),
        eta=0.0,
    )
    policy = search.policy()
    measured = LatencyTable.load(path)
    rows = measured.model(layer_macs(model))
    predicted = measured.rest_ms(rows) + sum(
        measured.layer_ms(rows, name, b.weight_bits, b.activation_bits, "packed")
        for name, b in policy.items()
    )
    assert low <= predicted <= most < high
    assert policy.made_by["config"]["limits"][0]["cost"] == pytest.approx(predicted)
