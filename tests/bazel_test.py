"""BUILD in Bazel itself, where it is installed as docs/bazel.md says."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BAZEL = shutil.which("bazel")
REPOSITORIES = Path("/usr/share/bazel/tools/skylib")


@pytest.mark.slow
@pytest.mark.skipif(not BAZEL or not REPOSITORIES.exists(), reason="no Bazel of Debian")
def test_everything_builds_and_fast_tests_pass(tmp_path):
    start = [BAZEL, "--batch", f"--output_user_root={tmp_path}"]
    steps = (["build", "//..."], ["test", "//:fast", "--test_env=PATH"])
    try:
        for step in steps:
            done = subprocess.run(
                [*start, *step, "--symlink_prefix=/"],
                cwd=ROOT,
                env=dict(os.environ),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
        assert "4 tests pass" in done.stdout + done.stderr
    finally:  # Bazel leaves folders that may not be written to
        subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=False)
