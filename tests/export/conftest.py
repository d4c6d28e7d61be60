"""Exports in tests measure latency only where that is what is tested."""

import pytest

from gmpq_tf.export.tflite import exporter


@pytest.fixture(autouse=True)
def no_latency(request, monkeypatch):
    if "measures_latency" not in request.fixturenames:
        monkeypatch.setattr(exporter, "measure_latency", lambda *_: {})


@pytest.fixture
def measures_latency():
    """Asked for by tests of the latency in the report."""
