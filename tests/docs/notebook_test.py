"""The notebook runs from its first cell to its last, on data that are here."""

import json
import sys

import pytest

from tests.docs.blocks import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") for cell in notebook["cells"]), "clear outputs"
    found = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in found]


# With which every cell still runs and tells the same, in a fraction of the time.
QUICK = {
    "epochs=30": "epochs=12",
    "(2, 3, 4, 6, 8), (2, 3, 4, 6, 8)": "(2, 3, 4), (2, 4, 6)",
    "images=64": "images=32",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(QUICK, id="quick"),
        pytest.param({}, id="as written"),
    ],
)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_tells_its_story(path, changes, tmp_path, monkeypatch, capsys):
    """As a notebook would: each cell in the names that those before it left."""
    monkeypatch.chdir(tmp_path)
    sources = cells(path)
    for written, instead in changes.items():
        assert sum(written in source for source in sources) == 1, written
        sources = [source.replace(written, instead) for source in sources]
    names = {"__name__": "__main__"}
    for number, source in enumerate(sources):
        exec(compile(source, f"{path.name}, cell {number}", "exec"), names)
    assert "0 off" in capsys.readouterr().out
    float_row, uniform, searched = (row.accuracy for row in names["rows"])
    assert uniform < searched <= float_row + 0.01
    assert searched == pytest.approx(
        (names["decisions"] == names["test_labels"]).mean()
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_in_a_kernel(path, tmp_path, monkeypatch):
    """In Jupyter itself; figures come out as pictures."""
    nbformat = pytest.importorskip("nbformat", reason="the extra [docs]")
    nbclient = pytest.importorskip("nbclient", reason="the extra [docs]")
    pytest.importorskip("ipykernel", reason="the extra [docs]")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    told = "print('told:', *(row.accuracy for row in rows), (decisions == test_labels)"
    told += ".mean())"
    notebook.cells.append(nbformat.v4.new_code_cell(told))
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=600, resources=resources)
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    done = client.execute()
    outputs = [out for cell in done.cells for out in cell.get("outputs", [])]
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 2
    said = "".join(out["text"] for out in outputs if out["output_type"] == "stream")
    assert "0 off" in said
    float_row, uniform, searched, file = map(float, said.split("told:")[1].split())
    assert uniform < searched <= float_row + 0.01
    assert file == pytest.approx(searched)
