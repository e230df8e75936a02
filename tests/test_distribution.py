"""The files that ``make dist`` builds: a wheel installed alone, outside the checkout, is the whole package."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

from tests.processes import Finished, run_command

CHECKOUT = Path(__file__).resolve().parents[1]
# Everything that the build reads. A copy of it is built, since setuptools writes into the folder that it builds from.
SOURCES = ["pyproject.toml", "setup.cfg", "README.md", "LICENSE", "synflow_pl", "configs"]
SHORT = [
    "--trainer.max_epochs=1",
    *(f"--trainer.limit_{stage}_batches=1" for stage in ("train", "val", "test")),
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def test_the_wheel_runs_the_demo_and_a_recipe_outside_the_checkout(tmp_path: Path) -> None:
    wheel = build(tmp_path)
    packaged = set(zipfile.ZipFile(wheel).namelist())
    assert {path.as_posix() for path in package_files()} <= packaged
    assert not any(name.startswith(("tests/", "configs/", "build/")) for name in packaged)

    scripts = install(wheel, tmp_path / "environment")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(command: str, *args: str) -> Finished:
        # One thread: the commands are short, and threads of several test processes would wait for each other.
        finished = run_command([scripts / command, *args], cwd=elsewhere, env={"OMP_NUM_THREADS": "1"}, limit=120)
        assert finished.returncode == 0, finished.output
        return finished

    imported = run("python", "-c", "import synflow_pl; print(synflow_pl.__file__)").output.strip()
    assert Path(imported).is_relative_to(tmp_path / "environment")

    assert "sparse, SynFlow" in run("synflow_pl", "demo", *SHORT).output
    run("synflow_pl", "prune", "-c", "mnist_fc", "--pruning.density=0.1", "--pruning.rounds=2", "--run=named")
    assert (elsewhere / "lightning_logs/named/masks.safetensors").is_file()


def build(folder: Path) -> Path:
    """Build the source distribution and from it the wheel, with the tools of this environment, and return the wheel."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(CHECKOUT / name, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source]
    finished = run_command(command, cwd=folder, limit=120)
    assert finished.returncode == 0, finished.output
    assert len(list((folder / "dist").glob("*.tar.gz"))) == 1
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def install(wheel: Path, environment: Path) -> Path:
    """Install the wheel into a new virtual environment and return the folder of its commands.

    Packages that the wheel requires come from the environment that runs the tests, by its folders and not by its ``.pth`` files,
    which would also add the checkout.
    """
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin/python", "install", "--quiet", "--no-index", "--no-deps"]
    for command in ([sys.executable, "-m", "venv", "--without-pip", environment], [*pip, wheel]):
        finished = run_command(command, cwd=environment.parent, limit=60)
        assert finished.returncode == 0, finished.output
    (packages,) = environment.glob("lib/python*/site-packages")
    required = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "required.pth").write_text("".join(f"{path}\n" for path in required))
    return environment / "bin"


def package_files() -> list[Path]:
    """Return the paths that every module, recipe and data file of the checkout has in the wheel."""
    modules = [path.relative_to(CHECKOUT) for path in (CHECKOUT / "synflow_pl").rglob("*") if path.is_file()]
    recipes = ["synflow_pl" / path.relative_to(CHECKOUT) for path in (CHECKOUT / "configs").rglob("*.yaml")]
    return [path for path in modules + recipes if "__pycache__" not in path.parts]
