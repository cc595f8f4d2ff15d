"""The notebook, executed with the smallest network on a few drawings; and its stored outputs."""

import re

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

FILE = ROOT / "petseg" / "notebooks" / "pets.ipynb"
SHORT = 'FOLDER = "pets"\nOPTIONS = {{"epochs": 1, "data_dir": "{}", "encoder": "tiny", "image_size": 32}}'


def outputs(cell):
    """The outputs of a cell: text, error output, and rich data."""
    texts, data = {"stdout": "", "stderr": ""}, []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts[output.name] += output.text
        elif output.output_type in ("display_data", "execute_result"):
            data.append(output.data)
    return texts["stdout"], texts["stderr"], data


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(FILE, 4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    parameters.source = SHORT.format(data_dir)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = {cell.id: outputs(cell) for cell in notebook.cells if cell.cell_type == "code"}
    _, _, shown = cells["train"]
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)  # a notebook's progress bar
    for name in ("look", "augment", "build", "history", "predict", "own", "cutout"):
        assert any("image/png" in data for data in cells[name][2]), name
    assert not "".join(stderr for _, stderr, _ in cells.values())
    assert {path.name for path in tmp_path.iterdir()} == {"pets"}
    assert float(re.search(r"([\d.]+)% of the pixels as before", cells["exports"][0])[1]) > 95


def test_stored_outputs_are_complete_and_hold_no_local_paths():
    notebook = nbformat.read(FILE, 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = "".join(str(output) for cell in cells for output in cell.outputs)
    assert shown.count("image/png") >= 7
    assert not re.search(r"(?<![\w./:])/(tmp|home|root|usr|work|mnt|opt|Users|var)/", shown)
    assert "Traceback" not in shown
    assert FILE.stat().st_size < 2**21
