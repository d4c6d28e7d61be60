"""The site: built without a warning, whole, and read without network."""

import os
import re
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("mkdocs", reason="the extra [docs] is not installed")
pytest.importorskip("mkdocstrings", reason="the extra [docs] is not installed")

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--host-resolver-rules=MAP~*~~NOTFOUND --enable-logging=stderr"
)
FETCHED = re.compile(
    r'<(?:script|img|iframe|link)[^>]+(?:src|href)="(?:https?:)?//[^"]+"'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def visit(address, *options):
    flags = [flag.replace("~", " ") for flag in QUIET.split()]
    done = subprocess.run(
        [BROWSER, *flags, "--virtual-time-budget=8000", *options, address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout, [li for li in done.stderr.splitlines() if "CONSOLE" in li]


def test_every_page_and_study_is_there(site, repo_root):
    for page in (repo_root / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file(), page
    for study in (repo_root / "results").glob("*/README.md"):
        assert (site / "results" / f"{study.parent.name}.html").is_file(), study


def test_nothing_is_fetched(site):
    for page in site.rglob("*.html"):
        found = FETCHED.findall(page.read_text(encoding="utf-8"))
        assert not [tag for tag in found if 'rel="canonical"' not in tag], page


def test_the_reference_has_what_is_public(site):
    import gmpq_tf

    text = (site / "api" / "gmpq_tf.html").read_text(encoding="utf-8")
    for name in gmpq_tf.__all__:
        assert re.search(rf'(id|href)="[^"]*gmpq_tf[\w.]*\.{name}"', text), name


def test_numbers_of_the_results_are_those_of_the_files(site, repo_root):
    import json

    summary = repo_root / "results" / "digits" / "summary.json"
    rows = json.loads(summary.read_text(encoding="utf-8"))["rows"]
    page = (site / "results.html").read_text(encoding="utf-8")
    for row in rows:
        assert f"<td>{100 * row['accuracy']:.2f} %</td>" in page


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_page_from_the_disk_is_searched_in_a_browser(site, tmp_path):
    address = f"file://{site}/api/search.html?q=budget"
    page, complaints = visit(address, "--dump-dom", f"--user-data-dir={tmp_path}")
    found = re.search(r'md-search-result__meta">(\d+) matching', page)
    assert found and int(found[1]) > 3
    assert not complaints
