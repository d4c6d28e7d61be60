"""Run pytest on the files that are named: what a `py_test` of BUILD starts."""

import sys

import pytest

if __name__ == "__main__":
    # 5: nothing was collected, as where every test of a file is marked slow.
    code = int(pytest.main(sys.argv[1:]))
    sys.exit(0 if code == 5 else code)
