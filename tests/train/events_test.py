"""TensorBoard events, read back by stock TensorBoard, say what the files say."""

import importlib.util
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.data import DataConfig, load_dataset
from gmpq_tf.files import read_jsonl, write_json
from gmpq_tf.models import build_model
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.run.events import ImportancesLog, events, heat, write_maps
from gmpq_tf.run.run_config import EventsConfig, RunConfig
from gmpq_tf.run.stage import Stage
from gmpq_tf.search.finalists import NO_FINALISTS
from gmpq_tf.search.policies import find_strategy
from gmpq_tf.train.attribute import attribution_maps
from gmpq_tf.train.finetune import FinetuneConfig, finetune
from gmpq_tf.train.found_events import write_map_events
from gmpq_tf.train.search import SearchConfig, configs_of, search
from gmpq_tf.train.strategies import ChoicesConfig, search_by
from gmpq_tf.train.sweep_events import swept, write_hparams
from tests.train.conftest import small_model

pytest.importorskip("tensorboard", reason="reads event files")
DIGITS = DataConfig("digits", batch_size=256)


def read(folder):
    """(tag, step) -> array, as TensorBoard reads one run of a stage."""
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    sizes = {event_accumulator.TENSORS: 0}  # all of them
    accumulator = event_accumulator.EventAccumulator(str(folder), sizes).Reload()
    found = [
        ((tag, event.step), tensor_util.make_ndarray(event.tensor_proto))
        for tag in accumulator.Tags()["tensors"]
        for event in accumulator.Tensors(tag)
    ]
    assert len(dict(found)) == len(found)  # no step twice
    return dict(found)


def plugin(folder, tag):
    from tensorboard.backend.event_processing import event_accumulator

    accumulator = event_accumulator.EventAccumulator(str(folder)).Reload()
    return accumulator.SummaryMetadata(tag).plugin_data.plugin_name


def check_policy(found, stage):
    """The text `policy` against policy.json."""
    policy = BitwidthPolicy.load(stage.folder / "policy.json")
    text = found["policy", 0].item().decode()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert rows[0] == ["layer", "weight bits", "activation bits"]
    assert rows[2:] == [
        [name, str(policy[name].weight_bits), str(policy[name].activation_bits)]
        for name in policy
    ]
    return text, policy


def check_values(found, stage):
    """Numbers and histograms against values.json."""
    values = json.loads((stage.folder / "values.json").read_text())["values"]
    checked = 0
    for side in ("weights", "activations"):
        of_bits = {}
        for name, sides in values.items():
            for bits, value in sides[side].items():
                of_bits.setdefault(int(bits), []).append(value)
                single = found[f"values/{side}/{name}", int(bits)]
                assert single == pytest.approx(value, rel=1e-6)
                checked += 1
        for bits, worth in of_bits.items():
            buckets = found[f"values/{side}", bits]
            assert buckets[:, 2].sum() == len(worth)
            assert buckets[:, 0].min() == pytest.approx(min(worth), rel=1e-6)
            assert buckets[:, 1].max() == pytest.approx(max(worth), rel=1e-6)
    assert checked > 4


def images_of(found, folder):
    """The pictures of the tag `attribution`, decoded by TensorFlow."""
    assert plugin(folder, "attribution") == "images"
    ((_, step),) = [key for key in found if key[0] == "attribution"]
    return step, [
        tf.io.decode_png(png).numpy() for png in found["attribution", step][2:]
    ]


def held_out():
    dataset = load_dataset(DIGITS)
    return next(iter(dataset.validation().unbatch().batch(4)))


@pytest.mark.slow
def test_a_trained_search_and_its_student_show_what_they_found(tmp_path, float_file):
    run = RunConfig(str(tmp_path), progress="none", tensorboard=True)
    config = SearchConfig(
        epochs=2, model=str(float_file), calibration_images=64, decay_epochs=()
    )
    config = SearchConfig(**{**vars(config), "risk": type(config.risk)(budget="W4A4")})
    stage = search(config, DIGITS, run)
    folder = stage.folder / "tensorboard"
    assert {path.name for path in folder.iterdir()} >= {
        "train", "importances", "result", "attribution",
    }  # fmt: skip
    records = read_jsonl(stage.folder / "importances.jsonl")
    assert [record["epoch"] for record in records] == [0, 1]
    last = json.loads((stage.folder / "importances.json").read_text())["layers"]
    assert records[-1]["layers"] == last
    found, checked = read(folder / "importances"), 0
    for record in records:
        for name, layer in record["layers"].items():
            for side in ("weight", "activation"):
                buckets = found[f"importances/{name}/{side}s", record["epoch"]]
                np.testing.assert_array_equal(
                    buckets[:, :2].mean(axis=1), layer[f"{side}_bits"]
                )
                np.testing.assert_allclose(
                    buckets[:, 2], layer[f"{side}_probabilities"], rtol=1e-6
                )
                checked += 1
    assert checked == len(found) > 0
    assert plugin(folder / "importances", next(iter(found))[0]) == "histograms"
    result = read(folder / "result")
    text, policy = check_policy(result, stage)
    (limit,) = policy.made_by["config"]["limits"]
    assert f"({100 * limit['cost'] / limit['limit']:.2f} %)" in text
    assert "given as W4A4" in text
    check_values(result, stage)
    _, mixed = images_of(read(folder / "attribution"), folder / "attribution")
    student = finetune(FinetuneConfig(epochs=1, model=str(float_file)), DIGITS, run)
    part = student.folder / "tensorboard" / "attribution"
    _, pictures = images_of(read(part), part)
    check_policy(read(student.folder / "tensorboard" / "result"), student)
    images, labels = held_out()
    model = keras.models.load_model(float_file)
    saved = keras.models.load_model(student.folder / "model.keras")
    maps = [attribution_maps(each, images, labels) for each in (model, saved)]
    pixels = np.asarray(images)[..., 0]
    assert len(pictures) == len(mixed) == len(pixels) == 4
    for number, picture in enumerate(pictures):
        small = picture[::12, ::12]  # 8 pixels, each shown as 12
        assert small.shape == (8, 24, 3)
        shown, *heats = np.split(small, 3, axis=1)
        assert np.abs(shown[..., 0] / 255 - pixels[number] / pixels.max()).max() < 0.1
        for heated, of_model in zip(heats, maps, strict=True):
            share = of_model[number] / max(of_model[number].max(), 1e-12)
            red = np.rint(255 * np.minimum(3 * share, 1))
            assert np.abs(heated[..., 0] - red).max() <= 1
        np.testing.assert_array_equal(mixed[number][:, :192], picture[:, :192])


def test_measured_tables_are_shown(tmp_path, float_file):
    name = "loss_delta"
    assert EventsConfig in configs_of(name)
    row = find_strategy(name)
    run = EventsConfig(str(tmp_path), progress="none", tensorboard=True)
    config = ChoicesConfig(model=str(float_file), calibration_images=64, budget="W4A4")
    options = row.config(images=64) if hasattr(row.config(), "images") else row.config()
    stage = search_by(name, config, options, NO_FINALISTS, DIGITS, run)
    result = read(stage.folder / "tensorboard" / "result")
    check_policy(result, stage)
    check_values(result, stage)


def layers(value):
    sides = {f"{side}_bits": [2, 4] for side in ("weight", "activation")}
    shares = {
        f"{s}_probabilities": [value, 1 - value] for s in ("weight", "activation")
    }
    return {"conv": sides | shares}


def trained(folder, shares, start=0, ends=True):
    now = iter(shares)
    log = ImportancesLog(folder, lambda: layers(next(now)), start)
    log.set_model(SimpleNamespace())
    log.on_train_begin()
    for epoch in range(start, start + len(shares)):
        log.on_epoch_end(epoch)
    if ends:
        log.on_train_end()


def test_a_resumed_search_has_no_step_twice(tmp_path):
    trained(tmp_path, [0.5, 0.25, 0.125], ends=False)
    trained(tmp_path, [0.75, 1.0], start=2)
    found = read(tmp_path / "tensorboard" / "importances")
    shown = [found["importances/conv/weights", step][0, 2] for step in range(4)]
    assert shown == [0.5, 0.25, 0.75, 1.0]
    assert len(found) == 8
    records = read_jsonl(tmp_path / "importances.jsonl")
    assert [record["layers"] for record in records] == list(map(layers, shown))


def test_maps_without_anything_in_them_are_black(tmp_path):
    np.testing.assert_array_equal(heat(np.zeros((1, 2, 2))), 0)
    white = heat(np.array([[[0.0, 7.0]]]))
    np.testing.assert_array_equal(white, [[[[0, 0, 0], [255, 255, 255]]]])
    with events(tmp_path, "a"):
        write_maps(np.zeros((2, 8, 8, 3), np.uint8), {"float": np.ones((2, 8, 8))})
    _, pictures = images_of(read(tmp_path / "a"), tmp_path / "a")
    assert [picture.shape for picture in pictures] == [(96, 192, 3)] * 2


def hparams_table(folder):
    """What the HPARAMS tab shows: hyperparameters and metrics of each session."""
    from tensorboard.backend.event_processing import (
        data_provider,
        plugin_event_multiplexer,
    )
    from tensorboard.context import RequestContext
    from tensorboard.plugins.hparams import (
        api_pb2,
        backend_context,
        list_session_groups,
    )

    runs = plugin_event_multiplexer.EventMultiplexer()
    runs.AddRunsFromDirectory(str(folder)).Reload()
    provider = data_provider.MultiplexerDataProvider(runs, str(folder))
    context = backend_context.Context(SimpleNamespace(data_provider=provider))
    request = RequestContext()
    read_from = request, ""
    experiment = context.experiment_from_metadata(
        *read_from, True, context.hparams_metadata(*read_from), []
    )
    asked = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=api_pb2.Status.values(),
        col_params=[
            api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos
        ],
    )
    handler = list_session_groups.Handler(request, context, "", asked)
    table = {}
    for group in handler.run().session_groups:
        row = {
            name: getattr(value, value.WhichOneof("kind"))
            for name, value in group.hparams.items()
        }
        figures = {m.name.tag: m.value for m in group.metric_values}
        table[group.name] = (row, figures)
    return [info.name for info in experiment.hparam_infos], table


def test_the_table_of_a_sweep_is_that_of_its_records(tmp_path):
    points = {
        f"{n}_x": {
            "search": {"eta": eta, "seed": 0, "augment": None},
            "finetune": {"epochs": 2 + n},
            "evaluate": {},
        }
        for n, eta in enumerate([0, 100, 2.5])
    }
    for number, name in enumerate([*points][:2]):  # the third is not finished
        folder = tmp_path / "points" / name / "finetune"
        write_json(folder / "done.json", {"bit_ops": 10.0 + number, "weight_bytes": 5})
        measured = {"accuracy": 0.5 + number / 8, "images": 9, "split": "validation"}
        write_json(folder / "evaluation.json", measured)
    for _ in range(2):  # written again, nothing is there twice
        folder = write_hparams(tmp_path, points)
    names, table = hparams_table(folder)
    assert sorted(names) == ["finetune.epochs", "search.eta"]
    rows = sorted(table.values(), key=lambda row: row[1]["accuracy"])
    assert rows == [
        (
            {"search.eta": 0.0, "finetune.epochs": 2.0},
            {"accuracy": 0.5, "bit_ops": 10.0, "weight_bytes": 5.0},
        ),
        (
            {"search.eta": 100.0, "finetune.epochs": 3.0},
            {"accuracy": 0.625, "bit_ops": 11.0, "weight_bytes": 5.0},
        ),
    ]
    assert read(folder / "0_x")["accuracy", 0] == 0.5


def test_one_point_shows_all_of_its_flags():
    point = {"search": {"eta": 3, "augment": None}, "finetune": {}, "evaluate": {}}
    assert swept({"a": point}) == {"a": {"search.eta": 3, "search.augment": "default"}}


def test_tensorboard_that_is_missing_is_named_by_every_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for config in (EventsConfig, RunConfig):
        with pytest.raises(ValueError, match="pip install tensorboard"):
            config(tensorboard=True)


def sequences():
    x = inputs = keras.Input((16, 4))
    x = keras.layers.Conv1D(4, 3)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


@pytest.mark.parametrize(
    ("make", "changed", "why"),
    [
        (small_model, {"distribution": "mirrored"}, "they are drawn on one device"),
        (small_model, {"sizes": {"validation": 0}}, "no held-out images with labels"),
        (small_model, {"labelled": False}, "no held-out images with labels"),
        (sequences, {}, "no images of 1 or 3 channels"),
    ],
)
def test_a_stage_without_maps_says_why(tmp_path, capsys, make, changed, why):
    images = {"labelled": True, "sizes": {"validation": 9}}
    dataset = SimpleNamespace(**{k: changed.get(k, v) for k, v in images.items()})
    run = RunConfig(str(tmp_path), distribution=changed.get("distribution", "none"))
    model = make()
    write_map_events(Stage(tmp_path, "search"), model, model, dataset, run)
    said = capsys.readouterr().out
    assert said.startswith("Attribution maps are left out of TensorBoard: ")
    assert why in said
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize("name", ["ssd_resnet8", "faster_rcnn_resnet18"])
def test_a_detector_has_no_maps(tmp_path, capsys, name):
    options = {"alpha": 0.125} if name.startswith("faster") else {}
    model = build_model(name, (64, 64, 3), 2, **options)
    dataset = SimpleNamespace(labelled=True, sizes={"validation": 9})
    run = RunConfig(str(tmp_path))
    write_map_events(Stage(tmp_path, "search"), model, model, dataset, run)
    assert "those of a detector" in capsys.readouterr().out
