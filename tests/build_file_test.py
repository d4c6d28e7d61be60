"""BUILD against a scan of the bytecode for imports; the tool itself reads the AST."""

import ast
import dis
import importlib.util
import os
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REMEDY = "run `make build-file`"
OWN = {path.parent.name for path in ROOT.glob("*/__init__.py")}
IMPORT_NAMES = {
    "absl-py": "absl",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "tf-keras": "tf_keras",
}


def source_files():
    for folder, subfolders, files in os.walk(ROOT):
        skip = [n for n in subfolders if n[0] in "._" or n in ("build", "dist", "runs")]
        subfolders[:] = sorted(set(subfolders) - set(skip))
        for name in files:
            if name.endswith(".py"):
                yield Path(folder, name).relative_to(ROOT).as_posix()


SOURCES = sorted(source_files())


def read_rules():
    """Rule name -> (kind, attributes); BUILD is Python syntax."""
    rules = {}
    for node in ast.parse((ROOT / "BUILD").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            kind = node.value.func.id
            if kind.startswith("py_"):
                values = {k.arg: k.value for k in node.value.keywords}
                name = ast.literal_eval(values["name"])
                assert name not in rules, f"{name} twice in BUILD: {REMEDY}"
                rules[name] = (kind, values)
    return rules


RULES = read_rules()


def sources_of(rule):
    return ast.literal_eval(RULES[rule][1]["srcs"])


def deps_of(rule):
    """(targets, import names of distributions) a rule says it needs."""
    deps = RULES[rule][1].get("deps", ast.List([])).elts
    inside = {d.value.removeprefix(":") for d in deps if isinstance(d, ast.Constant)}
    calls = [d.args[0].value for d in deps if isinstance(d, ast.Call)]
    return inside, {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in calls}


def imported_modules(path):
    """Names of the modules a file imports, from its bytecode."""
    package = ".".join(path.split("/")[:-1])
    pending = [compile((ROOT / path).read_text(encoding="utf-8"), path, "exec")]
    while pending:
        code = pending.pop()
        pending += [const for const in code.co_consts if hasattr(const, "co_code")]
        steps = list(dis.get_instructions(code))
        for before, last, step in zip(steps, steps[1:], steps[2:], strict=False):
            if step.opname == "IMPORT_NAME":
                dots = "." * before.argval
                name = importlib.util.resolve_name(dots + step.argval, package)
                yield from with_members(name, last.argval or ())


def with_members(module, members):
    """The submodules among the imported members, and the module if there are others."""
    inner = [m for m in members if file_of(f"{module}.{m}")]
    yield from (f"{module}.{m}" for m in inner)
    if len(inner) < len(members) or not members:
        yield module


def file_of(module):
    path = module.replace(".", "/")
    found = [p for p in (f"{path}.py", f"{path}/__init__.py") if p in SOURCES]
    return found[0] if found else None


def sibling_of(source, module):
    """A script finds the files beside it first; a package's file does not."""
    script = ROOT / source
    found = script.with_name(module.split(".")[0] + ".py")
    alone = not script.with_name("__init__.py").exists() and found.exists()
    return found.relative_to(ROOT).as_posix() if alone else None


def test_every_python_file_is_in_exactly_one_target():
    listed = sorted(source for rule in RULES for source in sources_of(rule))
    assert listed == SOURCES, REMEDY


@pytest.mark.parametrize("rule", RULES)
def test_deps_are_the_imports(rule):
    owners = {source: name for name in RULES for source in sources_of(name)}
    inside, outside = set(), set()
    for source in sources_of(rule):
        for module in imported_modules(source):
            file = sibling_of(source, module) or file_of(module)
            top = module.split(".")[0]
            if file:
                inside.add(owners[file])
            elif top not in sys.stdlib_module_names | OWN:
                outside.add(top)
    if RULES[rule][0] == "py_test":  # what pytest itself brings
        inside.add("tests/conftest")
        outside.add("pytest")
    assert deps_of(rule) == (inside - {rule}, outside), REMEDY


def test_no_file_of_the_project_is_taken_for_a_distribution():
    asked = {name for rule in RULES for name in deps_of(rule)[1]}
    assert "numpy" in asked
    scripts = {path.stem for path in (ROOT / "benchmarks").rglob("*.py")}
    assert not asked & (scripts | OWN), REMEDY


def test_targets_do_not_depend_on_each_other_in_a_circle():
    TopologicalSorter({rule: deps_of(rule)[0] for rule in RULES}).prepare()


def test_kinds_follow_from_the_files():
    for rule, (kind, values) in RULES.items():
        (source,) = sources_of(rule)
        if kind == "py_test":
            assert ast.literal_eval(values["args"]) == [source]
        is_test = source.startswith("tests/") and source.endswith("_test.py")
        assert (kind == "py_test") == is_test
        runs = 'if __name__ == "__main__":' in (ROOT / source).read_text("utf-8")
        assert (kind == "py_binary") == (runs and not is_test)


def test_the_tool_writes_the_same_text(tmp_path):
    spec = importlib.util.spec_from_file_location(
        "update_build", ROOT / "tools" / "update_build.py"
    )
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool  # dataclasses look their module up by name
    spec.loader.exec_module(tool)
    assert tool.render() == (ROOT / "BUILD").read_text(encoding="utf-8"), REMEDY
