"""What all tests share: fixed seeds, and the folder of real data where it is."""

import gc
import os
import random
import sys
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# oneDNN's own allocator keeps what was once asked for: a few large models, and each
# worker has gigabytes that nothing uses.
os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
# Compiling each small shape costs more than it saves; mixture_test covers XLA.
os.environ.setdefault("GMPQ_XLA_QUANTIZERS", "0")

# TensorFlow and Keras make more garbage than Python's rhythm of collecting it is meant
# for: looking through all that is alive took a tenth of a run.
gc.set_threshold(100_000, 50, 100)

ROOT = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Marks as slow all but N rows of tests marked `quick_rows(N)`.

    Which rows stay is drawn from their names: rows at equal distances could all have
    one value of a parameter in common.
    """
    rows = defaultdict(list)
    for item in items:
        if mark := item.get_closest_marker("quick_rows"):
            test = item.nodeid.partition("[")[0]
            rows[test, mark.args[0]].append(item)
    for (_, count), of_test in rows.items():
        of_test.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        for item in of_test[count:]:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def repo_root():
    """The folder that holds setup.py."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir():
    """Folder of real data and weights; the test is skipped where there is none."""
    folder = Path(os.environ.get("GMPQ_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("real data is not here; GMPQ_SHARED may name its folder")
    return folder


@pytest.fixture(autouse=True)
def fixed_seeds():
    random.seed(0)
    np.random.seed(0)
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def no_latency():
    """Exports measure latency only where that is what is tested.

    Each would write the float model, too, by TensorFlow's converter, and time it and
    every storage: longer than all else that most tests do.
    """
    exporter = sys.modules.get("gmpq_tf.export.tflite.exporter")
    measure = getattr(exporter, "measure_latency", None)
    with pytest.MonkeyPatch.context() as patch:
        if exporter is not None:
            patch.setattr(exporter, "measure_latency", lambda *_: {})
        yield exporter, measure


@pytest.fixture
def measures_latency(no_latency, monkeypatch):
    """Asked for by tests of the latency in the report."""
    exporter, measure = no_latency
    monkeypatch.setattr(exporter, "measure_latency", measure)


@pytest.fixture(autouse=True, scope="module")
def collected_garbage():
    """After each file: what then is alive stays, and is not looked through again."""
    yield
    gc.collect()
    gc.freeze()
