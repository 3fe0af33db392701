"""The notebooks run, and what they keep of an execution is whole and small."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
# What replaces the cell of parameters: figures with which everything runs and nothing is learned.
SMALL = {
    "property_tests": "EXAMPLES, SAMPLES = 2, 1000",
    "sb3_offline_to_online": "STEPS_OF_DATA, UPDATES, STEPS_ONLINE, EPISODES = 400, 5, 5, 1",
    "toy_dataset": "UPDATES = 5",
}


def code_cells(path: Path) -> list[Any]:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def pictures(cells: list[Any]) -> int:
    return sum("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    names = SMALL[path.stem].partition(" = ")[0]
    assert parameters.source.startswith(f"{names} = ")
    parameters.source = SMALL[path.stem]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    executed = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert pictures(executed) == pictures(code_cells(path)) >= 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_its_outputs(path: Path) -> None:
    assert path.stat().st_size < 150_000
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_installs_what_is_not_there(path: Path) -> None:
    first = code_cells(path)[0]
    assert 'if find_spec("gtp_policy") is None:' in first.source
    assert "%pip install" in first.source
    assert first.outputs == []  # where it was executed, the package was there


def test_every_notebook_is_known() -> None:
    assert {path.stem for path in NOTEBOOKS} == SMALL.keys()
