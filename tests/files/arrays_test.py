import random
import subprocess
import sys

import numpy as np
import pytest

from gmpq_tf.files import DamagedFileError, read_arrays, write_arrays

ARRAYS = {
    "0": np.arange(6, dtype="float32").reshape(2, 3),
    "1": np.array([], "int64"),
    "epoch": np.array(7),
}
WRITE_TOO_MUCH = """
import resource, sys
import numpy as np
from gmpq_tf.files import write_arrays
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    write_arrays(sys.argv[1], {"a": np.ones(100_000)})
except OSError as error:
    print(error)
"""


def test_a_limit_of_the_system_leaves_the_old_file_and_no_other(tmp_path, repo_root):
    path = write_arrays(tmp_path / "state.npz", ARRAYS)
    command = [sys.executable, "-c", WRITE_TOO_MUCH, str(path)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert done.stdout.startswith("A file must fit on the disk"), done.stderr
    assert "File too large" in done.stdout and list(tmp_path.iterdir()) == [path]
    np.testing.assert_equal(read_arrays(path), ARRAYS)


def test_every_truncated_backup_is_noticed(tmp_path):
    path = write_arrays(tmp_path / "state.npz", ARRAYS)
    content = path.read_bytes()
    np.testing.assert_equal(read_arrays(path), ARRAYS)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(DamagedFileError, match=r"state\.npz.*truncated or damaged"):
            read_arrays(path)


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    """Dates and system bytes of a zip carry no data; all else is checked."""
    path = write_arrays(tmp_path / "state.npz", ARRAYS)
    content, drawn, noticed = path.read_bytes(), random.Random(0), 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= drawn.choice([1 << drawn.randrange(8), 255])
        path.write_bytes(damaged)
        try:
            np.testing.assert_equal(read_arrays(path), ARRAYS)
        except DamagedFileError:
            noticed += 1
    assert noticed > 0.5 * len(content)
