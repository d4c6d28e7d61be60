"""The page in a real browser: every figure drawn; narrow, dark and on paper too."""

import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from gmpq_tf.report import write_report
from gmpq_tf.report.page import PICTURES
from tests.report.page_test import row, write_json, write_run, write_summary

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--enable-logging=stderr --hide-scrollbars"
).split()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
# What a phone of 390 pixels shows: headless windows are 500 wide at least.
PHONE = '<!DOCTYPE html><body style="margin:0"><iframe src="{}" style="border:0" '
PHONE += 'width="390" height="6000"></iframe>'


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    write_run(workdir)
    searched = row("searched", file_bytes=56924, tflite_accuracy=0.9526)
    rows = [row("float"), row("uniform W3A3 with a long name", accuracy=0.8), searched]
    write_summary(workdir, rows=rows, attribution="maps.npz")
    sides = {"weights": {"2": -1.0, "4": 0.0}, "activations": {"3": 0.0}}
    values = {"margin": {"text": "sure"}, "values": {"conv": sides}}
    write_json(workdir / "search" / "values.json", values)
    return write_report(workdir)


def visit(address, tmp_path, *options):
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *options, address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not said, said
    return done.stdout


def picture(address, tmp_path, width, height, *options):
    path = tmp_path / "shot.png"
    size = f"--window-size={width},{height}"
    visit(address, tmp_path, size, f"--screenshot={path}", *options)
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB")) / 255.0


def test_every_figure_is_there_without_a_complaint(page, tmp_path):
    text = visit(f"file://{page}", tmp_path, "--dump-dom")
    assert text.count("<svg") == len(PICTURES)
    assert json.dumps("taken") in text and "<meter" in text


def test_every_figure_is_drawn(page, tmp_path):
    """Between two headings there is ink of many colours, or of much."""
    shot = picture(f"file://{page}", tmp_path, 1000, 4200)
    ink = (np.abs(shot - shot[0, 0]).max(-1) > 0.1).mean(1)
    rows = np.flatnonzero(ink > 0)
    gaps = np.diff(rows)
    assert len(rows) > 1500 and gaps.max() < 300  # no empty place of a figure's height


def test_a_narrow_page_does_not_scroll_sideways(page, tmp_path):
    """Only what is wider, tables and figures, does so within its own place."""
    frame = page.parent / "phone.html"
    frame.write_text(PHONE.format(page.name), encoding="utf-8")
    shot = picture(f"file://{frame}", tmp_path, 500, 6000)
    inside = shot[:, :390]
    ink = np.abs(inside - inside[2, 2]).max(-1) > 0.1
    assert ink[:, :382].any() and not ink[:, 386:].any()


def test_dark_is_dark_and_figures_stay_white(page, tmp_path):
    dark = picture(
        f"file://{page}",
        tmp_path,
        1000,
        1600,
        "--blink-settings=preferredColorScheme=0",
    )
    assert dark[2, 2].max() < 0.3
    assert (dark.min(-1) > 0.99).mean() > 0.1


def test_nothing_is_cut_off_on_paper(tmp_path):
    """On A4 between its margins, 718 pixels, with all the values of a search."""
    write_run(tmp_path)
    write_summary(tmp_path)
    widths = {str(bits): -0.000123456 / bits for bits in (2, 3, 4, 5, 6, 8)}
    sides = {"weights": widths, "activations": widths}
    values = {"margin": {"text": "sure"}, "values": {"block1_depthwise": sides}}
    write_json(tmp_path / "search" / "values.json", values)
    path = write_report(tmp_path)
    text = path.read_text(encoding="utf-8").replace("@media print", "@media all")
    paper = "<style>body { width: 718px; margin: 0; }</style></head>"
    path.write_text(text.replace("</head>", paper), encoding="utf-8")
    shot = picture(f"file://{path}", tmp_path, 1200, 4000)
    ink = np.abs(shot - shot[0, 0]).max(-1) > 0.1
    assert ink[:, 600:718].any() and not ink[:, 720:].any()


def test_it_prints(page, tmp_path):
    path = tmp_path / "page.pdf"
    visit(f"file://{page}", tmp_path, f"--print-to-pdf={path}")
    content = path.read_bytes()
    assert (
        content.startswith(b"%PDF")
        and 1 < len(re.findall(rb"/Type /Page\b", content)) < 12
    )
