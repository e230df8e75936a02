"""The distribution that `make dist` builds is complete: its wheel runs outside the checkout."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

from tests.processes import Finished, run_command

CHECKOUT = Path(__file__).resolve().parents[1]
# Everything that the build reads. A copy is built, since setuptools writes into its source folder.
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
    assert package_files() <= packaged
    assert not any(name.startswith(("tests/", "configs/", "build/")) for name in packaged)

    commands = install(wheel, tmp_path / "environment")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(command: str, *args: str) -> str:
        # Threads of several test processes would wait for each other.
        one_thread = {"OMP_NUM_THREADS": "1"}
        return output_of(run_command([commands / command, *args], elsewhere, one_thread, 120))

    imported = run("python", "-c", "import synflow_pl; print(synflow_pl.__file__)").strip()
    assert Path(imported).is_relative_to(tmp_path / "environment")

    assert "sparse, SynFlow" in run("synflow_pl", "demo", *SHORT)
    recipe = ["-c", "mnist_fc", "--pruning.density=0.1", "--pruning.rounds=2", "--run=named"]
    run("synflow_pl", "prune", *recipe)
    assert (elsewhere / "lightning_logs/named/masks.safetensors").is_file()


def output_of(finished: Finished) -> str:
    """Return the output of a command that has to succeed."""
    assert finished.returncode == 0, finished.output
    return finished.output


def build(folder: Path) -> Path:
    """Build the source distribution and the wheel as `make dist` does; return the wheel."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (CHECKOUT / name).is_dir():
            no_cache = shutil.ignore_patterns("__pycache__")
            shutil.copytree(CHECKOUT / name, source / name, ignore=no_cache)
        else:
            shutil.copy(CHECKOUT / name, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source]
    output_of(run_command(command, cwd=folder, limit=120))
    assert len(list((folder / "dist").glob("*.tar.gz"))) == 1
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def install(wheel: Path, environment: Path) -> Path:
    """Install the wheel into a new virtual environment and return the folder of its commands.

    The packages that the wheel requires come from the environment that runs the tests. Their
    folders are added without processing the `.pth` files in them, which could add the checkout.
    """
    create = [sys.executable, "-m", "venv", "--without-pip", environment]
    output_of(run_command(create, cwd=environment.parent))
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin/python"]
    output_of(run_command([*pip, "install", "--no-index", "--no-deps", wheel], environment.parent))
    (packages,) = environment.glob("lib/python*/site-packages")
    required = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "required.pth").write_text("".join(f"{path}\n" for path in required))
    return environment / "bin"


def package_files() -> set[str]:
    """Return the names that all modules, recipes and data files have in the wheel."""
    package, configs = CHECKOUT / "synflow_pl", CHECKOUT / "configs"
    files = [path.relative_to(CHECKOUT) for path in package.rglob("*") if path.is_file()]
    files += ["synflow_pl" / path.relative_to(CHECKOUT) for path in configs.rglob("*.yaml")]
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}
