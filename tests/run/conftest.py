"""The images and the workdir of the tests of commands, here too."""

from tests.train.conftest import digits, quiet  # noqa: F401
