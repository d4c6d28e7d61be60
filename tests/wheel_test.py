"""The wheel: what it holds, and that it works outside the checkout."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gmpq_tf.version import __version__
from tools.try_extras import CHECKS as EXTRAS
from tools.try_extras import try_extra

ROOT = Path(__file__).resolve().parents[1]
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")

pytest.importorskip("setuptools", minversion="68", reason="builds the wheel with it")
pytest.importorskip("pip", reason="installs the wheel with it")


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_sources(folder):
    """A copy, because building leaves build/ and *.egg-info behind."""
    skip = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("gmpq_tf", "train", "export"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)


def built(source, target):
    """The wheel of a folder or of a source archive."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "-w", str(target)]
    run(sys.executable, "-m", "pip", "wheel", *options, str(source), cwd=target)
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    copy_sources(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    return built(sources, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The source archive."""
    pytest.importorskip("build", reason="makes the source archive")
    folder = tmp_path_factory.mktemp("source")
    copy_sources(folder)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", ".", cwd=folder)
    (path,) = (folder / "dist").glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-index", "--target", str(target)]
    run(sys.executable, "-m", "pip", "install", *options, str(wheel), cwd=target)
    return target


def expected_modules():
    """Every Python file of the package; the doors train/ and export/ stay outside."""
    for path in (ROOT / "gmpq_tf").rglob("*.py"):
        yield path.relative_to(ROOT).as_posix()


def test_holds_every_module_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = [name for name in names if name.endswith(".py")]
    assert sorted(modules) == sorted(expected_modules())
    assert "gmpq_tf/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)


def contents(wheel):
    """Name -> bytes; RECORD lists the others, and the metadata name the tool."""
    found = zipfile.ZipFile(wheel)
    skip = ("RECORD", "WHEEL")
    return {n: found.read(n) for n in found.namelist() if not n.endswith(skip)}


def test_the_source_archive_builds_the_same_wheel(wheel, archive, tmp_path):
    assert contents(built(archive, tmp_path)) == contents(wheel)


def test_an_index_would_take_them(wheel, archive):
    pytest.importorskip("twine", reason="knows what a package index checks")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, archive, cwd=ROOT)


def test_metadata_say_what_it_is(wheel):
    found = zipfile.ZipFile(wheel)
    (name,) = [n for n in found.namelist() if n.endswith("METADATA")]
    lines = found.read(name).decode().splitlines()
    assert f"Version: {__version__}" in lines
    assert "Description-Content-Type: text/markdown" in lines
    (python,) = [li for li in lines if li.startswith("Requires-Python")]
    assert ">=3.10" in python and "<3.14" in python
    classifiers = {li.partition(": ")[2] for li in lines if li.startswith("Classifier")}
    versions = {f"Programming Language :: Python :: 3.{n}" for n in range(10, 14)}
    assert versions | {"Typing :: Typed"} <= classifiers
    extras = {li.partition(": ")[2] for li in lines if li.startswith("Provides-Extra")}
    assert extras == set(EXTRAS)


def test_claims_one_top_level_name(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gmpq_tf"}


def entry_points(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
    parser = configparser.ConfigParser()
    parser.read_string(archive.read(name).decode())
    return dict(parser["console_scripts"])


def test_has_the_commands(wheel):
    steps = "pretrain search finetune evaluate export report cost sweep demo".split()
    steps += ["compress", "latency"]
    assert sorted(entry_points(wheel)) == sorted(f"gmpq-{step}" for step in steps)


def test_commands_point_at_functions_that_exist(wheel, installed):
    for target in entry_points(wheel).values():
        module, function = target.split(":")
        path = installed / (module.replace(".", "/") + ".py")
        assert f"def {function}(" in path.read_text(encoding="utf-8"), target


def test_core_needs_no_extra(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [n for n in archive.namelist() if n.endswith("METADATA")]
    lines = archive.read(name).decode().splitlines()
    needed = [line for line in lines if line.startswith("Requires-Dist:")]
    core = " ".join(line for line in needed if "extra ==" not in line)
    assert "tensorflow" in core and "keras" in core
    extras = "optimization tf_keras keras-cv pycocotools mediapipe tflite-micro pytest"
    for extra in extras.split():
        assert extra not in core
    assert any("extra" in line and "optimization" in line for line in needed)


def test_imports_outside_the_checkout(installed, tmp_path):
    program = f"""
import sys
sys.path.insert(0, {str(installed)!r})
import gmpq_tf
import gmpq_tf.export, gmpq_tf.train
from gmpq_tf import policy, space, cost
for module in (gmpq_tf, gmpq_tf.train, gmpq_tf.export, policy):
    assert module.__file__.startswith({str(installed)!r}), module.__file__
assert len(gmpq_tf.__path__) == 1
assert "tensorflow" not in sys.modules
"""
    run(sys.executable, "-I", "-c", program, cwd=tmp_path)


def test_a_policy_needs_half_a_second(installed, tmp_path):
    """Of processor time, so that it does not count what else the machine does."""
    program = f"""
import sys, time
sys.path.insert(0, {str(installed)!r})
start = time.process_time()
import gmpq_tf.policy
print(time.process_time() - start)
assert "tensorflow" not in sys.modules and "keras" not in sys.modules
"""
    times = [
        float(run(sys.executable, "-I", "-c", program, cwd=tmp_path)) for _ in range(3)
    ]
    assert min(times) < 0.5


@pytest.mark.large
@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_an_extra_works_in_an_empty_environment(extra, tmp_path):
    """Needs a package index, and gigabytes for a while."""
    try_extra(extra, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["train.search", "train.demo", "train.report", "export.tflite"]
)
def test_help_of_the_installed_commands(installed, tmp_path, module):
    program = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); "
        f"sys.argv = [{module!r}, '--helpfull']; "
        f"from gmpq_tf.{module} import run; run()"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "--workdir" in done.stdout, done.stderr
