"""The first screen: its numbers are those of the studies; what is named exists."""

import re

import pytest

from tests.docs.blocks import ROOT
from tools import readme

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
MAKE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_table_is_that_of_the_studies():
    assert readme.readme(TEXT, readme.rows()) == TEXT


def test_the_picture_shows_the_numbers_of_the_table():
    picture = (ROOT / readme.PICTURE).read_text(encoding="utf-8")
    for row in readme.rows():
        if not row.trained and row.accuracies[1] is not None:
            assert row.what in picture
            for share in row.accuracies:
                assert f">{100 * share:.1f}<" in picture


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_targets_of_make_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", MAKE, re.MULTILINE), target


def test_make_alone_prints_every_target():
    import subprocess

    done = subprocess.run(
        ["make"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rules = set(re.findall(r"^([a-z-]+):", MAKE, re.MULTILINE))
    assert {
        line.split()[0] for line in done.stdout.splitlines() if line[:2] == "  "
    } == rules


def test_the_version_is_in_one_place():
    from gmpq_tf.version import __version__

    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert '"' + __version__ not in (ROOT / "setup.py").read_text()
