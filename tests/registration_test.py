"""Saved models load whatever was imported first."""

import re
import subprocess
import sys

import keras
import pytest

import gmpq_tf as gmpq
from gmpq_tf.search.distill import Distiller

ORDERS = {
    "keras_after": "import gmpq_tf, keras; gmpq_tf.BitwidthPolicy",
    "keras_before": "import keras, gmpq_tf",
    "data_first": "from gmpq_tf.data import DataConfig",
    "models_first": "from gmpq_tf.models import build_model",
    "export_first": "from gmpq_tf.export.tflite import export_tflite",
    "search_first": "from gmpq_tf.search import PolicySearch",
    "train_first": "from gmpq_tf.train.search import search",
}
LOAD = """
import sys, keras
for path in sys.argv[1:]:
    keras.models.load_model(path, compile=False)
known = [n for n in keras.saving.get_custom_objects() if n.startswith("gmpq_tf>")]
print(sorted(known))
"""


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A student, a search and a distiller, saved."""
    folder = tmp_path_factory.mktemp("saved")
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(2, 3, activation="relu")(inputs)
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    student = gmpq.quantize_model(model, gmpq.BitwidthPolicy.uniform(model, 4, 4))
    paths = [str(folder / f"{name}.keras") for name in ("student", "search")]
    student.save(paths[0])
    search = gmpq.PolicySearch(model, eta=0.0)
    search.compile(loss="mse")
    search.save(paths[1])
    return paths


def test_saved_models_load_whatever_was_imported_first(saved):
    known = run(f"{ORDERS['data_first']}\n{LOAD}", *saved)
    assert all(name in known for name in ("QuantConv2D", "PolicySearch", "Distiller"))


@pytest.mark.slow
@pytest.mark.parametrize("order", sorted({*ORDERS} - {"data_first"}))
def test_saved_models_load_in_every_order(saved, order):
    known = run(f"{ORDERS[order]}\n{LOAD}", *saved)
    assert all(name in known for name in ("QuantConv2D", "PolicySearch", "Distiller"))


def test_every_class_is_registered(repo_root):
    """The modules that `import gmpq_tf` loads with Keras define all of them."""
    defined = {
        name
        for path in (repo_root / "gmpq_tf").rglob("*.py")
        for name in re.findall(
            r'register_keras_serializable\("gmpq_tf"\)\s+class (\w+)',
            path.read_text(encoding="utf-8"),
        )
    }
    gmpq._register_classes()
    known = keras.saving.get_custom_objects()
    assert Distiller in known.values()
    assert {name for name in defined if f"gmpq_tf>{name}" not in known} == set()


@pytest.mark.slow
def test_our_own_loader_needs_nothing_before_it(saved):
    load = "import gmpq_tf, sys; print(*map(gmpq_tf.load_model, sys.argv[1:]))"
    assert "PolicySearch" in run(load, *saved)


def test_nothing_hooks_into_imports():
    code = """
import sys
before = list(sys.meta_path), list(sys.path_hooks), list(sys.path)
import gmpq_tf.policy
print(before == (sys.meta_path, sys.path_hooks, sys.path), len(gmpq_tf.__path__))
"""
    assert run(code) == "True 1"


def test_what_needs_no_keras_loads_none():
    code = """
import sys, gmpq_tf, gmpq_tf.policy, gmpq_tf.space, gmpq_tf.cost, gmpq_tf.report
print([name for name in ("keras", "tensorflow") if name in sys.modules])
"""
    assert run(code) == "[]"
