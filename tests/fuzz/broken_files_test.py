"""Broken files: a documented error, soon and in little memory, or a result."""

import random
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.limits import limited
from tests.fuzz.readers import READERS

QUICK, LONG = 300, 10_000  # cases over all readers
TOTAL_WEIGHT = sum(reader.weight for reader in READERS.values())
LONGEST_MESSAGE = 5000


def read_broken(name, folder, seed):
    """Reads one broken file; the same one for the same seed."""
    reader, draws = READERS[name], random.Random(seed)
    content = draws.choice(reader.damages)(reader.content(), draws)
    path = folder / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with limited(f"{name}, seed {seed}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reader.read(folder)
        except reader.errors as error:
            check_message(str(error))


def check_message(text):
    assert "Received" in text
    assert len(text) < LONGEST_MESSAGE


def many(name, cases):
    """Settings: the same cases every time, so many of them as the row says."""
    return settings(
        max_examples=round(cases * READERS[name].weight / TOTAL_WEIGHT),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def try_many(name, folder, cases):
    @many(name, cases)
    @given(st.integers(0, 2**32))
    def test_one(seed):
        read_broken(name, folder, seed)

    test_one()


@pytest.mark.parametrize("name", READERS)
def test_a_good_file_is_read(name, tmp_path):
    reader = READERS[name]
    path = tmp_path / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(reader.content())
    reader.read(tmp_path)


@pytest.mark.quick_rows(10)
@pytest.mark.parametrize("name", READERS)
def test_broken_files(name, tmp_path):
    try_many(name, tmp_path, QUICK)


@pytest.mark.parametrize("seed", [413, 1244, 1364])
def test_a_file_that_ends_the_runtime_is_an_error(tmp_path, seed):
    read_broken("tflite model", tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_broken_files(name, tmp_path):
    try_many(name, tmp_path, LONG)
