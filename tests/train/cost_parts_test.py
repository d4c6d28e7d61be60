"""Sums over the backbone and the heads of a detector, against closed forms."""

import csv
import io
import json

import keras
import pytest

from gmpq_tf.graph import layer_macs, searchable_names
from gmpq_tf.models import build_model
from gmpq_tf.train.cost import CostConfig, describe_cost

SMALL = {"model": "ssd_resnet8", "image_size": 32, "num_classes": 3}


def as_json(**config):
    return json.loads(describe_cost(CostConfig(format="json", **config)))


def test_the_backbone_of_ssd300_is_thirteen_convolutions():
    sizes = {"model": "ssd300_vgg16", "image_size": 300, "num_classes": 20}
    content = as_json(**sizes)
    backbone, heads = content["parts"]
    # The closed forms of table 2, pools rounding up: 13 convolutions at 300 x 300.
    assert (backbone["name"], backbone["macs"]) == ("backbone", 27_816_496_128)
    assert heads["macs"] == 31_373_537_792 - 27_816_496_128
    assert backbone["bit_ops"] == 1024 * backbone["macs"]
    assert content["total"]["macs"] == 31_373_537_792
    alone = as_json(**sizes, part="backbone")
    assert len(alone["layers"]) == 13 and "parts" not in alone
    assert all(row["name"].startswith("stage") for row in alone["layers"])
    assert alone["total"]["macs"] == 27_816_496_128
    assert alone["other"]["params"] == 0


def test_parts_add_up_to_all_kernels():
    model = build_model("ssd_resnet8", (32, 32, 3), 3)
    names = searchable_names(build_model("resnet8", (32, 32, 3), 10))[:-1]
    content = as_json(**SMALL, policy="uniform:3,3")
    backbone, heads = content["parts"]
    macs = layer_macs(model)
    assert backbone["macs"] == sum(macs[name] for name in names)
    for key in ("macs", "bit_ops", "activation_bytes", "input_elements"):
        assert backbone[key] + heads[key] == content["total"][key]
    kernels = sum(row["weight_bytes"] for row in content["layers"])
    assert backbone["weight_bytes"] + heads["weight_bytes"] == kernels
    for part, row in (("backbone", backbone), ("heads", heads)):
        alone = as_json(**SMALL, policy="uniform:3,3", part=part)["total"]
        assert alone["bit_ops"] == row["bit_ops"]


def test_tables_have_a_line_for_each_part():
    lines = describe_cost(CostConfig(**SMALL)).splitlines()
    assert [line.split()[0] for line in lines[-4:]] == [
        "backbone",
        "heads",
        "other",
        "total",
    ]
    rows = csv.DictReader(io.StringIO(describe_cost(CostConfig(**SMALL, format="csv"))))
    assert [row["kind"] for row in rows][-4:] == ["part", "part", "other", "total"]


def test_a_backbone_is_that_of_any_classifier(tmp_path):
    """Also of a user's own: layers of the same name."""

    def features(x):
        x = keras.layers.Conv2D(4, 3, name="one")(x)
        return keras.layers.Conv2D(4, 3, name="two")(x)

    x = keras.Input((12, 12, 3))
    y = keras.layers.Conv2D(5, 1, name="own")(features(x))
    keras.Model(x, y, name="mine").save(tmp_path / "detector.keras")
    y = keras.layers.Dense(2, name="last")(keras.layers.Flatten()(features(x)))
    keras.Model(x, y, name="source").save(tmp_path / "classifier.keras")
    files = {
        "model": str(tmp_path / "detector.keras"),
        "backbone": str(tmp_path / "classifier.keras"),
    }
    content = as_json(**files)
    assert [row["name"] for row in content["parts"]] == ["backbone", "heads"]
    assert content["parts"][0]["macs"] == 100 * 27 * 4 + 64 * 36 * 4
    assert content["parts"][1]["macs"] == 64 * 4 * 5
    with pytest.raises(ValueError, match=r"backbone='resnet8'.*'mine'"):
        as_json(model=files["model"], backbone="resnet8")
    with pytest.raises(ValueError, match=r"part='heads' of model='mine'.*--backbone"):
        as_json(model=files["model"], part="heads")


def test_parts_of_a_classifier_and_of_budgets_are_refused():
    sizes = {"model": "resnet8", "image_size": 32, "num_classes": 10}
    assert "parts" not in as_json(**sizes)
    with pytest.raises(ValueError, match="no detector"):
        as_json(**sizes, part="backbone")
    with pytest.raises(ValueError, match="whole models"):
        CostConfig(**sizes, part="backbone", budget="W4A4")
