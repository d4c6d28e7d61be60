"""Docstrings say the shape of every tensor."""

import ast

import pytest

TENSORS = ("tf.Tensor", "np.ndarray", "tf.Variable", "keras.KerasTensor")
SAID = ("[", "scalar", "shape")


def silent(text):
    """Names of the public functions that take or give tensors of unsaid shape."""
    for owner in [tree := ast.parse(text), *ast.walk(tree)]:
        if not isinstance(owner, (ast.Module, ast.ClassDef)):
            continue
        for node in owner.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                said = (ast.get_docstring(node) or "").lower()
                if has_tensors(node) and said and not any(s in said for s in SAID):
                    yield node.name


def has_tensors(node):
    arguments = [*node.args.args, *node.args.kwonlyargs]
    hints = [a.annotation for a in arguments] + [node.returns]
    texts = [ast.unparse(hint) for hint in hints if hint is not None]
    return any(tensor in text for tensor in TENSORS for text in texts)


def test_shapes_are_said(repo_root):
    found = {
        f"{path.relative_to(repo_root)}: {name}"
        for path in (repo_root / "gmpq_tf").rglob("*.py")
        for name in silent(path.read_text(encoding="utf-8"))
    }
    assert sorted(found) == []


@pytest.mark.parametrize(
    ("doc", "found"),
    [("Doubles it.", ["f"]), ("Doubles it.\n\nArgs:\n    x: [B, C].", []), ("", [])],
)
def test_what_counts_as_said(doc, found):
    text = f'def f(x: tf.Tensor) -> tf.Tensor:\n    """{doc}"""\n    return 2 * x\n'
    assert list(dict.fromkeys(silent(text))) == found
