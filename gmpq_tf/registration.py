"""Make the layers known to Keras as soon as Keras is there, and no sooner.

`keras.models.load_model` finds our layers by their registered names, so importing
`gmpq_tf` must register them; but policies and costs must import without loading
TensorFlow.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from types import ModuleType

# Importing these imports every module that registers a class with Keras.
MODULES = ("gmpq_tf.layers", "gmpq_tf.search", "gmpq_tf.transform.distill")


def register_with_keras() -> None:
    """Import the layers now if Keras is imported, else as soon as it is."""
    if sys.modules.get("keras") is not None:
        _import_layers()
    else:
        sys.meta_path.insert(0, _AfterKeras())


def _import_layers() -> None:
    for module in MODULES:
        importlib.import_module(module)


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Registers the layers when Keras is loaded and no module of ours half loaded.

    Finds Keras and our modules as usual, with loaders that count how deep imports are
    nested: one of ours that imports Keras is finished before its siblings are imported,
    which may need it.
    """

    def __init__(self) -> None:
        self._nesting = threading.local()

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "keras" and not name.startswith("gmpq_tf."):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                self._enter(+1)
                try:
                    run(module)
                finally:
                    self._enter(-1)
                self._register_if_possible()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _enter(self, change: int) -> None:
        self._nesting.depth = getattr(self._nesting, "depth", 0) + change

    def _register_if_possible(self) -> None:
        pending = self._nesting.depth == 0 and self in sys.meta_path
        if pending and sys.modules.get("keras") is not None:
            sys.meta_path.remove(self)
            _import_layers()
