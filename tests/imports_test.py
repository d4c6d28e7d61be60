"""The direction of imports: a module imports only what stands to its left."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each row is one place in the order; the modules of one row do not import each other.
ORDER = [
    ("spelling", "align", "distribution", "first_trace", "metric_names", "version"),
    ("files", "kernel_kinds"),
    ("layer_kinds",),
    ("inputs", "latency"),
    ("graph",),
    ("bits", "ends"),
    ("budget",),
    ("float_layers",),
    ("cost_tables",),
    ("limits",),
    ("policy", "progress"),
    ("space",),
    ("cost",),
    ("quantizers",),
    ("latency_cost",),
    ("layers",),
    ("detection",),
    ("transform",),
    ("post_training",),
    ("attribution", "task"),
    ("search",),
    ("models", "data"),
    ("report",),
    ("run",),
    ("export",),
    ("compression",),
    ("train",),
]
PLACE = {unit: place for place, row in enumerate(ORDER) for unit in row}
COMMAND_LINES = ("train", "export")
# Import name -> the only files or folders that may import it.
CONFINED = {
    "absl.flags": ("gmpq_tf/run/", "gmpq_tf/train/", "gmpq_tf/export/"),
    "absl.app": ("gmpq_tf/run/", "gmpq_tf/train/", "gmpq_tf/export/"),
    "tensorflow_model_optimization": ("gmpq_tf/export/tfmot/",),
    "tf_keras": ("gmpq_tf/export/tfmot/",),
    "tensorflow_datasets": ("gmpq_tf/data/",),
    "matplotlib": ("gmpq_tf/report/",),
    "ray": ("gmpq_tf/train/sweep_ray.py",),
    "optuna": ("gmpq_tf/train/sweep_study.py",),
}


def source_files():
    paths = sorted((ROOT / "gmpq_tf").rglob("*.py"))
    return [path.relative_to(ROOT).as_posix() for path in paths]


def doors():
    """The files of train/ and export/: what `python -m train.search` finds."""
    paths = [path for name in COMMAND_LINES for path in (ROOT / name).glob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in paths)


def imported_names(source, text):
    """Dotted names a file imports, wherever in the file: module, or module.member."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = source.split("/")[: -node.level] if node.level else []
            base = ".".join([*package, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def unit_of(parts):
    """Which part of the project a dotted name belongs to; None for other packages."""
    if parts[0] != "gmpq_tf":
        return None
    return parts[1] if len(parts) > 1 else "gmpq_tf"


def faults(source, text):
    """What a file imports against the rules, as readable lines."""
    unit = unit_of(source.removesuffix(".py").split("/"))
    if unit not in PLACE:
        return [f"{source}: {unit!r} has no place in ORDER"]
    return [
        f"{source} imports {name}: {fault}"
        for name in imported_names(source, text)
        for fault in [_fault(unit, name), _confined(source, name)]
        if fault
    ]


def _fault(unit, name):
    other = unit_of(name.split("."))
    if other is None or other == unit:
        return None
    if other not in PLACE:
        # `import gmpq_tf`: everything at once, so only for what stands last.
        return None if unit in COMMAND_LINES else "name the module it comes from"
    if PLACE[other] >= PLACE[unit]:
        return f"{other} does not stand to the left of {unit}"
    return None


def _confined(source, name):
    for package, places in CONFINED.items():
        inside = name == package or name.startswith(f"{package}.")
        if inside and not source.startswith(places):
            return f"only {', '.join(places)} may"
    return None


@pytest.mark.parametrize("source", source_files())
def test_imports_go_one_way(source):
    text = (ROOT / source).read_text(encoding="utf-8")
    if source != "gmpq_tf/__init__.py":  # the public names, from everywhere
        assert faults(source, text) == []


@pytest.mark.parametrize("source", [*source_files(), *doors()])
def test_nothing_is_imported_through_a_door(source):
    """Else a checkout would have modules twice, an installation none."""
    text = (ROOT / source).read_text(encoding="utf-8")
    tops = {name.split(".")[0] for name in imported_names(source, text)}
    assert not tops & set(COMMAND_LINES)


@pytest.mark.parametrize("door", [d for d in doors() if "__init__" not in d])
def test_doors_hold_no_code(door):
    """One import and, for a command, its call: the code is in gmpq_tf/."""
    allowed = (ast.Expr, ast.ImportFrom, ast.Assign, ast.If)
    tree = ast.parse((ROOT / door).read_text(encoding="utf-8"))
    assert all(isinstance(node, allowed) for node in tree.body)
    modules = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    homes = {f"gmpq_tf.{door.removesuffix('.py').replace('/', '.')}"}
    if door.startswith("export/"):
        homes.add("gmpq_tf.export.command")
    assert set(modules) <= homes


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("gmpq_tf/policy.py", "from gmpq_tf.cost import bit_ops"),
        ("gmpq_tf/layers/mixed.py", "import gmpq_tf.search.zeta"),
        ("gmpq_tf/layers/mixed.py", "def f():\n    from gmpq_tf import search"),
        ("gmpq_tf/layers/mixed.py", "from .. import transform"),
        ("gmpq_tf/layers/mixed.py", "from ..transform.rewrite import rewrite"),
        ("gmpq_tf/layers/mixed.py", "import gmpq_tf"),
        ("gmpq_tf/models/resnet.py", "from gmpq_tf.data import DATASETS"),
        ("gmpq_tf/data/config.py", "from gmpq_tf.models import MODELS"),
        ("gmpq_tf/report/page.py", "from gmpq_tf.train.flags import flags"),
        ("gmpq_tf/export/tflite.py", "from gmpq_tf.train.flags import flags"),
        ("gmpq_tf/search/step.py", "from absl import flags"),
        ("gmpq_tf/search/step.py", "from absl.flags import DEFINE_string"),
        ("gmpq_tf/export/tflite.py", "import tf_keras"),
        ("gmpq_tf/train/search.py", "import tensorflow_datasets as tfds"),
        ("gmpq_tf/leftovers.py", ""),
    ],
)
def test_the_rules_catch(source, text):
    assert len(faults(source, text)) == 1


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("gmpq_tf/cost.py", "from gmpq_tf.policy import BitwidthPolicy"),
        ("gmpq_tf/layers/mixed.py", "from .quantized import QuantConv2D"),
        ("gmpq_tf/layers/mixed.py", "from gmpq_tf import quantizers"),
        ("gmpq_tf/data/digits.py", "import tensorflow_datasets as tfds"),
        ("gmpq_tf/train/demo.py", "from gmpq_tf.export.tflite import export_tflite"),
        (
            "gmpq_tf/train/demo.py",
            "import gmpq_tf as gmpq\nfrom absl import app, flags",
        ),
        ("gmpq_tf/export/tfmot/convert.py", "import tf_keras"),
    ],
)
def test_the_rules_allow(source, text):
    assert faults(source, text) == []
