"""Make the layers known to Keras as soon as Keras is there, and no sooner.

`keras.models.load_model` finds our layers by their registered names, so importing
`gmpq_tf` must register them; but policies and costs must import without loading
TensorFlow.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

MODULES = ("gmpq_tf.layers", "gmpq_tf.search", "gmpq_tf.transform.distill")


def register_with_keras() -> None:
    """Import the layers now if Keras is imported, else right after it is."""
    if sys.modules.get("keras") is not None:
        _import_layers()
    else:
        sys.meta_path.insert(0, _AfterKeras())


def _import_layers() -> None:
    for module in MODULES:
        importlib.import_module(module)


def _one_of_ours_is_loading() -> bool:
    return any(
        getattr(module.__spec__, "_initializing", False)
        for name, module in list(sys.modules.items())
        if name.startswith("gmpq_tf.")
    )


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Finds `keras` as usual, with a loader that registers the layers afterwards."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                if not _one_of_ours_is_loading():  # it would be imported half-made
                    _import_layers()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
