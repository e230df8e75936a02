"""The notebooks run from start to end, and their committed outputs are those of their code."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_command

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
# Lightning warns of what the machine has and the notebook does not use, such as srun or more cores.
NO_HINTS = """import warnings
warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
# Without a display, pyplot.show() warns that it shows nothing.
warnings.filterwarnings("ignore", "FigureCanvasAgg")"""


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def form(text: str) -> str:
    """Replace all numbers, and the widths of columns that depend on them, by fixed characters."""
    return re.sub(r"\s+|-{2,}", " ", re.sub(r"-?\d[\d.,]*(e-?\d+|[kMG]\b)?", "0", text)).strip()


def test_there_are_three_notebooks_and_the_readme_lists_them() -> None:
    assert len(NOTEBOOKS) == 3
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\((\S+\.ipynb)\)", readme)) == [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_its_outputs_show(notebook: Path, tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    cells = code_cells(notebook)
    sources = [NO_HINTS, *("".join(cell["source"]) for cell in cells)]
    script.write_text("\n\n".join(sources), encoding="utf-8")
    environment = {
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "SYNFLOW_DATA": str(tmp_path / "no-data"),
    }

    finished = run_command([sys.executable, script], cwd=tmp_path, env=environment, limit=120)

    assert finished.returncode == 0, finished.output
    outputs = [output for cell in cells for output in cell["outputs"]]
    committed = "".join("".join(output.get("text", "")) for output in outputs)
    assert form(finished.output) == form(committed)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_of_one_run_and_small(notebook: Path) -> None:
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
    assert notebook.stat().st_size < 100_000
