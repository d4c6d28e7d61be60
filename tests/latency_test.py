import json

import pytest

from gmpq_tf.latency import (
    LatencyError,
    LatencyTable,
    MeasuredModel,
    container_bits,
)

ROWS = {"conv int8": 4.0, "conv int4": 3.0, "conv int2": 2.5, "dense": 1.0, "add": 0.25}
WIDTHS = {"8": ("conv int8",), "4": ("conv int4",), "2": ("conv int2",)}
MODEL = MeasuredModel(
    "two",
    {"conv": 100, "dense": 10},
    {"conv": WIDTHS, "dense": dict.fromkeys("842", ("dense",))},
    ("add", "add"),
)


def table():
    runtime = {"name": "litert", "version": "2.1"}
    made = ("here", 1, runtime, "x86_64", "2026-01-01T00:00:00")
    return LatencyTable(*made, dict(ROWS), (MODEL,))


def test_a_table_survives_the_file(tmp_path):
    table().save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == table()


@pytest.mark.parametrize(
    ("storage", "bits", "wanted"),
    [
        ("fast", 2, 8),
        ("packed", 2, 4),
        ("packed", 4, 4),
        ("packed", 5, 8),
        ("smallest", 2, 2),
        ("smallest", 3, 4),
        ("smallest", 8, 8),
    ],
)
def test_the_container_of_a_weight(storage, bits, wanted):
    assert container_bits(storage, bits) == wanted
    ms = table().layer_ms(MODEL, "conv", bits, 4, storage)
    assert ms == ROWS[f"conv int{wanted}"]


def test_a_model_is_the_sum_of_its_operators():
    found = table().model({"conv": 100, "dense": 10})
    assert found is not None
    assert table().rest_ms(found) == 0.5
    assert table().predict(["conv int8", "add", "conv int8"]) == 8.25


def test_what_was_not_measured_is_named():
    assert table().missing(["x", "add", "x"]) == ["x"]
    with pytest.raises(LatencyError, match="Received: 1 that were not, such as 'x'"):
        table().predict(["add", "x"])
    with pytest.raises(LatencyError, match=r"2 layers and 411 MACs.*two \(110 MACs\)"):
        table().model({"conv": 401, "dense": 10})
    with pytest.raises(LatencyError, match="storage='tiny'"):
        container_bits("tiny", 4)


def test_a_model_measured_again_replaces_the_old_one():
    again = MeasuredModel("new", MODEL.macs, MODEL.layers, ())
    assert table().with_model(again).models == (again,)
    more = table().with_rows({"add": 1.0, "mul": 2.0}, "later")
    assert more.rows["add"] == 1.0
    assert more.rows["mul"] == 2.0
    assert more.created == "later"


def test_models_of_the_same_macs_are_told_apart(tmp_path):
    """By their outlines, where both are known."""
    relu, silu = (
        MeasuredModel(MODEL.name, MODEL.macs, MODEL.layers, rest, outline)
        for rest, outline in ((("add",), "relu"), (("add", "add"), "silu"))
    )
    both = table().with_model(relu).with_model(silu)
    both.save(tmp_path / "t.json")
    both = LatencyTable.load(tmp_path / "t.json")
    assert both.models == (relu, silu)  # the old one, of no outline, was replaced
    for model in (relu, silu):
        assert both.model(MODEL.macs, model.outline) == model
    with pytest.raises(LatencyError, match="of other layers between them"):
        both.model(MODEL.macs, "tanh")
    assert table().model(MODEL.macs, "relu") == MODEL  # of an earlier release


def change(path, value):
    def apply(record):
        inner = record
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change(["format"], 2), "format must be 1, not 2"),
        (change(["threads"], 0), "threads must be 1 or more"),
        (change(["threads"], True), "'threads' must be int"),
        (change(["rows", 0, "ms"], -1.0), "0 or more, not -1"),
        (change(["rows", 0, "ms"], None), "0 or more, not None"),
        (change(["rows", 1, "key"], "conv int8"), "there twice"),
        (change(["rows", 1, "key"], "other"), "not measured|were not"),
        (change(["runtime"], {"name": "litert"}), "'version' must be str"),
        (change(["models", 0, "rest"], ["never"]), "such as 'never'"),
        (change(["models", 0, "layers"], {}), "same layers"),
        (change(["models"], 3), "'models' must be list"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, spoil, message):
    record = json.loads(json.dumps(table().to_json()))
    spoil(record)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(record))
    with pytest.raises(LatencyError, match=message):
        LatencyTable.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1}', "\x00"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(LatencyError, match="gmpq-latency wrote"):
        LatencyTable.load(tmp_path / "t.json")
    with pytest.raises(LatencyError, match=r"missing\.json"):
        LatencyTable.load(tmp_path / "missing.json")
