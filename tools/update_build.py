"""Write BUILD: one target for each Python file, its deps read from its imports.

Run `python tools/update_build.py` (or `make build-file`) after adding a file or an
import; tests/build_file_test.py fails until then.
"""

import ast
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCES = ("build", "dist", "runs")
HEADER = '''\
"""One target for each Python file. Written by tools/update_build.py."""

load("//tools/bazel:rules.bzl", "py_binary", "py_library", "py_test", "requirement")

package(default_visibility = ["//visibility:public"])

# `bazel test //:fast`: files that need no TensorFlow.
test_suite(
    name = "fast",
    tests = [
        "tests/bits_test",
        "tests/budget_test",
        "tests/policy/policy_test",
        "tests/spelling_test",
    ],
)
'''
# Import name -> distribution, where the two differ.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "ai_edge_litert": "ai-edge-litert",
    "keras_cv": "keras-cv",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
    "tensorflow_model_optimization": "tensorflow-model-optimization",
    "tf_keras": "tf-keras",
    "tflite_micro": "tflite-micro",
}


@dataclass(frozen=True)
class Target:
    """One rule of BUILD.

    Args:
        rule: `py_library`, `py_binary` or `py_test`.
        source: the Python file, relative to the root.
        deps: labels, sorted.
    """

    rule: str
    source: str
    deps: tuple[str, ...]

    def render(self) -> str:
        """Returns the rule as BUILD text."""
        lines = [f'    name = "{label(self.source)[1:]}",']
        lines.append(f'    srcs = ["{self.source}"],')
        if self.rule == "py_test":
            # pytest collects the file; run by itself it would test nothing.
            lines.append(f'    args = ["{self.source}"],')
            lines.append('    data = ["pyproject.toml"],')
            lines.append('    main_module = "pytest",')
        elif self.source.startswith("tests/"):
            lines.append("    testonly = True,")  # so that it may read tests
        if self.deps:
            lines += ["    deps = [", *map(_render_dep, self.deps), "    ],"]
        return "\n".join([f"{self.rule}(", *lines, ")"])


def render(root: Path = ROOT) -> str:
    """Returns the text BUILD should have.

    Args:
        root: the folder that holds setup.py.
    """
    sources = python_files(root)
    targets = [read_target(root, source, sources) for source in sources]
    return "\n".join([HEADER, "\n\n".join(t.render() for t in targets), ""])


def python_files(root: Path) -> list[str]:
    """Returns every Python file of the project, relative to the root, sorted.

    Args:
        root: the folder that holds setup.py.
    """
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if _holds_sources(name)]
        paths = [Path(folder, name) for name in files if name.endswith(".py")]
        found += [path.relative_to(root).as_posix() for path in paths]
    return sorted(found)


def read_target(root: Path, source: str, sources: list[str]) -> Target:
    """Returns the target of one file.

    Args:
        root: the folder that holds setup.py.
        source: the file, relative to the root.
        sources: all Python files of the project.
    """
    tree = ast.parse((root / source).read_text(encoding="utf-8"))
    found = imports(tree, source)
    labels = {dep for name in found for dep in _labels(name, source, sources)}
    rule = _rule(source, tree)
    if rule == "py_test":
        labels |= {"pypi:pytest", ":tests/conftest"}
    return Target(rule, source, tuple(sorted(labels - {label(source)})))


def label(source: str) -> str:
    """Returns the label of a file's target.

    Args:
        source: a Python file, relative to the root.
    """
    return ":" + source.removesuffix(".py")


def imports(tree: ast.AST, source: str) -> Iterator[tuple[str, str]]:
    """Yields (module, name) for everything a file imports; name is "" for modules.

    Args:
        tree: the parsed file.
        source: the file, relative to the root; relative imports start there.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, source)
            yield from ((module, alias.name) for alias in node.names)


def main() -> None:
    """Writes BUILD beside setup.py."""
    (ROOT / "BUILD").write_text(render(), encoding="utf-8")
    sys.stdout.write(f"Wrote {ROOT / 'BUILD'}\n")


def _holds_sources(folder: str) -> bool:
    return not folder.startswith((".", "__")) and folder not in NOT_SOURCES


def _absolute(node: ast.ImportFrom, source: str) -> str:
    if not node.level:
        return node.module or ""
    package = source.split("/")[: -node.level]
    return ".".join([*package, *filter(None, [node.module])])


def _labels(imported: tuple[str, str], source: str, sources: list[str]) -> list[str]:
    module, name = imported
    path, top = module.replace(".", "/"), module.split(".")[0]
    member = [f"{path}/{name}.py", f"{path}/{name}/__init__.py"]
    # A script's own folder comes first on Python's path.
    beside = [f"{folder}/{top}.py" for folder in _script_folder(source, sources)]
    candidates = [*beside, *member, f"{path}.py", f"{path}/__init__.py"]
    inside = [label(candidate) for candidate in candidates if candidate in sources]
    if inside or f"{top}/__init__.py" in sources:  # maybe of an older version of ours
        return inside[:1]
    return _requirement(top)


def _script_folder(source: str, sources: list[str]) -> list[str]:
    """The folder of a file that is part of no package, in a list; else nothing."""
    folder = Path(source).parent
    alone = (folder / "__init__.py").as_posix() not in sources
    return [folder.as_posix()] if alone else []


def _requirement(top: str) -> list[str]:
    if top in sys.stdlib_module_names:
        return []
    return [f"pypi:{DISTRIBUTIONS.get(top, top)}"]


def _rule(source: str, tree: ast.Module) -> str:
    if source.startswith("tests/") and source.endswith("_test.py"):
        return "py_test"
    return "py_binary" if any(map(_is_main_guard, tree.body)) else "py_library"


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def _render_dep(dep: str) -> str:
    if dep.startswith("pypi:"):
        return f'        requirement("{dep.removeprefix("pypi:")}"),'
    return f'        "{dep}",'


if __name__ == "__main__":
    main()
