import json
import subprocess
import sys

import keras
import pytest

from gmpq_tf.budget import BudgetError
from gmpq_tf.cost_tables import TableOptions, cost_table
from gmpq_tf.export.latency import programs
from gmpq_tf.graph import layer_macs
from gmpq_tf.latency import LatencyError, LatencyTable
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.train.latency import Comparison, LatencyConfig, measure
from tests.export.latency_test import OUTPUT

L = keras.layers


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """Two layers; the first is stored in 8, 4 and 2 bits."""
    inputs = keras.Input((6, 6, 8))
    x = L.Conv2D(32, 3, padding="same", activation="relu", name="conv")(inputs)
    x = L.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, L.Dense(3, name="dense")(x), name="two")
    path = tmp_path_factory.mktemp("model") / "two.keras"
    model.save(path)
    return path


class Timer:
    """Says that a file takes a microsecond a byte, and counts what it is asked."""

    def __init__(self):
        self.groups = []

    def __call__(self, contents, timing):
        self.groups.append(list(contents))
        return {name: len(content) / 1000 for name, content in contents.items()}


def config(path, tmp_path, **options):
    return LatencyConfig(str(path), output=str(tmp_path / "t.json"), **options)


def test_a_table_is_made_once(model_file, tmp_path):
    timer = Timer()
    assert measure(config(model_file, tmp_path), timer) is None
    table = LatencyTable.load(tmp_path / "t.json")
    assert sorted(table.rows) == sorted(timer.groups[0])
    model = table.model(layer_macs(keras.models.load_model(model_file)))
    assert set(model.layers) == {"conv", "dense"}
    kernels = [model.layers["conv"][width] for width in "842"]
    assert [len(keys) for keys in kernels] == [1, 1, 1]
    assert len(set(kernels)) == 3
    assert "int8[32x3x3x8]" in kernels[0][0]
    assert "int4[32x72]" in kernels[1][0]
    assert "int2[32x72]" in kernels[2][0]
    measure(config(model_file, tmp_path), timer)
    assert len(timer.groups) == 1  # nothing was measured again


def test_a_policy_is_the_sum_of_its_operators(model_file, tmp_path):
    timer = Timer()
    compared = measure(config(model_file, tmp_path, policy="uniform:4,8"), timer)
    table = LatencyTable.load(tmp_path / "t.json")
    assert timer.groups[-1] == [""]  # the whole file
    model = keras.models.load_model(model_file)
    found = table.model(layer_macs(model))
    policy = BitwidthPolicy.uniform(model, 4, 8)
    parts = sum(
        table.layer_ms(found, name, bits.weight_bits, bits.activation_bits, "smallest")
        for name, bits in policy.items()
    )
    assert compared.predicted == pytest.approx(parts + table.rest_ms(found))
    assert str(Comparison(1.1, 1.0)).endswith("(+10.0%)")


def test_an_interrupted_measurement_goes_on(model_file, tmp_path, monkeypatch):
    from gmpq_tf.train import latency

    monkeypatch.setattr(latency, "FILES_AT_ONCE", 2)
    asked = []

    def stops(contents, timing):
        asked.extend(contents)
        if len(asked) > 3:
            raise KeyboardInterrupt
        return dict.fromkeys(contents, 1.0)

    with pytest.raises(KeyboardInterrupt):
        measure(config(model_file, tmp_path), stops)
    kept = LatencyTable.load(tmp_path / "t.json").rows
    assert kept == dict.fromkeys(asked[:2], 1.0 / programs.COPIES)
    timer = Timer()
    measure(config(model_file, tmp_path), timer)
    assert not {*kept} & {key for group in timer.groups for key in group}


def test_files_for_a_phone_and_back(model_file, tmp_path):
    folder, options = str(tmp_path / "phone"), {"policy": "uniform:2,8"}
    measure(config(model_file, tmp_path, write_only=folder, **options))
    assert not (tmp_path / "t.json").exists()
    index = json.loads((tmp_path / "phone/index.json").read_text())
    for name in (*index["names"], "whole"):
        (tmp_path / f"phone/{name}.txt").write_text(OUTPUT.format("100"))
    reading = LatencyConfig(
        read=folder, device="phone", output=str(tmp_path / "t.json")
    )
    compared = measure(reading)
    table = LatencyTable.load(tmp_path / "t.json")
    assert (table.device, table.runtime["name"]) == ("phone", "benchmark_model")
    assert set(table.rows.values()) == {0.1 / programs.COPIES}
    assert compared.measured == 0.1
    assert compared.predicted == pytest.approx(len(index["whole"]) * 0.025)
    assert table.model(layer_macs(keras.models.load_model(model_file))).name == "two"


def test_a_student_is_predicted_and_measured(model_file, tmp_path):
    model = keras.models.load_model(model_file)
    student = programs.student_of(model, BitwidthPolicy.uniform(model, 3, 3))
    student.save(tmp_path / "model.keras")
    compared = measure(config(tmp_path / "model.keras", tmp_path), Timer())
    assert compared.predicted > 0
    assert not LatencyTable.load(tmp_path / "t.json").models
    with pytest.raises(ValueError, match="Leave --policy out"):
        measure(
            config(tmp_path / "model.keras", tmp_path, policy="uniform:4,4"), Timer()
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "phone"}, "device='phone'"),
        ({"runtime_threads": 2}, "threads=2"),
    ],
)
def test_tables_of_two_devices_are_not_mixed(model_file, tmp_path, options, message):
    measure(config(model_file, tmp_path), Timer())
    with pytest.raises(LatencyError, match=message):
        measure(config(model_file, tmp_path, **options), Timer())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "model=None"),
        ({"model": "m", "rounds": 0}, "rounds=0"),
        ({"model": "m", "invocations": 0}, "invocations=0"),
        ({"model": "m", "runtime_threads": 0}, "runtime_threads=0"),
        ({"model": "m", "read": "b"}, "Leave --model and --policy out"),
        ({"model": "m", "rename_layers": "prefix=a"}, "rename_layers needs a policy"),
        ({"model": "m", "write_only": "a", "read": "b"}, "Give one of them"),
    ],
)
def test_flags_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        LatencyConfig(**options)


def test_the_command(model_file, tmp_path):
    """Real times: positive, and reported; how long is the machine's affair."""
    arguments = (f"--model={model_file}", "--rounds=1", "--invocations=3")
    done = subprocess.run(
        [sys.executable, "-m", "train.latency", *arguments, "--policy=uniform:4,4",
         f"--output={tmp_path}/t.json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "predicted" in done.stdout
    assert "measured" in done.stdout
    rows = LatencyTable.load(tmp_path / "t.json").rows
    assert rows
    assert all(ms > 0 for ms in rows.values())


def test_the_table_of_a_model_that_only_looks_alike_is_refused(tmp_path):
    """Same names and multiply-adds; what lies between, and the batch, take time too."""

    def made(activation="relu", batch=None):
        x = inputs = keras.Input(batch_shape=(batch, 6, 6, 8))
        x = L.Conv2D(8, 3, activation=activation, name="conv")(x)
        x = L.Dense(3, name="dense")(L.GlobalAveragePooling2D(name="pool")(x))
        return keras.Model(inputs, x, name="alike")

    models = {"relu": made(), "silu": made("silu"), "two": made(batch=2)}
    for name, model in models.items():
        if name == "silu":
            continue  # to save its time
        model.save(tmp_path / f"{name}.keras")
        path = tmp_path / f"{name}.json"
        options = {"policy": "uniform:8,8", "output": str(path)}
        whole = measure(
            LatencyConfig(str(tmp_path / f"{name}.keras"), **options), Timer()
        )
        images = model.inputs[0].shape[0] or 1
        ms = cost_table("latency_ms", model, TableOptions("fast", str(path)))
        assert ms.uniform(8, 8, {}) == pytest.approx(whole.predicted / images)
        for other in models.values():
            if other is not model:
                with pytest.raises(
                    BudgetError, match="of other layers between them, or"
                ):
                    cost_table("latency_ms", other, TableOptions("fast", str(path)))
