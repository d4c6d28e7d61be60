"""Exports in tests measure latency only where that is what is tested."""

import importlib

import pytest

# A checkout has the module under both names.
NAMES = ("export.exporter", "gmpq_tf.export.exporter")


@pytest.fixture(autouse=True)
def no_latency(request, monkeypatch):
    if "measures_latency" not in request.fixturenames:
        for name in NAMES:
            module = importlib.import_module(name)
            monkeypatch.setattr(module, "measure_latency", lambda *_: {})


@pytest.fixture
def measures_latency():
    """Asked for by tests of the latency in the report."""
