"""The README and the documentation are true: their commands mean what they describe."""

import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import QUIET

from docs import hooks
from synflow_pl.cli import prune as command
from synflow_pl.cli.command_line import resolve_or_exit
from synflow_pl.cli.experiment import EXPERIMENTS
from synflow_pl.cli.experiment import planned as experiment_planned
from synflow_pl.cli.main import run
from synflow_pl.cli.multishot import planned
from synflow_pl.cli.recipes import find_recipe
from synflow_pl.cli.session import Session
from synflow_pl.cli.sweep_options import parse_sweep
from tests.docs.pages import PAGES, README, blocks
from tests.docs.pages import words as typed

HOW_TO = README.parent / "docs" / "how-to"

TEXT = "\n".join(hooks.expand(path.read_text()) for path in [README, *PAGES])
"""The README and all pages, with the tables that are made when the site is built."""


def expanded(text: str) -> Iterator[str]:
    """As a shell reads braces: ``{a,b}_c`` is ``a_c`` and ``b_c``."""
    parts = [
        part[1:-1].split(",") if part.startswith("{") else [part]
        for part in re.split(r"(\{[^{}]*\})", text)
    ]
    return map("".join, itertools.product(*parts))


@pytest.mark.parametrize(
    "code", blocks("python", paths=[README]), ids=lambda code: code.strip().splitlines()[0]
)
def test_its_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, str(README), "exec"), names)
    if "masks" in names:
        assert names["masks"].density == pytest.approx(0.01, abs=1e-6)
        removed = [
            parameter[~mask] for parameter, mask in names["masks"].parameters(names["network"])
        ]
        assert not any(weights.any() for weights in removed)
    else:
        kept = sum(
            int(p.count_nonzero())
            for n, p in names["network"].named_parameters()
            if n.endswith("weight")
        )
        assert kept == -(-260_384 // 20)


def test_its_training_commands_are_understood_and_make_the_run_that_it_tests(
    built: Callable[..., Session], folder: Path
) -> None:
    fits = [words for words in typed("synflow_pl") if words[0] == "fit"]
    assert len(fits) >= 2
    for words in fits:
        if not {"--help", "--print_config", "--pruning.masks_path"} & set(words):
            built(*words)
    (tested,) = [words for words in typed("synflow_pl") if words[0] == "test"]
    assert (folder / tested[tested.index("--ckpt_path") + 1]).is_dir()


def test_its_prune_commands_are_understood_and_make_the_masks_that_it_trains_with(
    folder: Path, generated: None
) -> None:
    prunings = [words for words in typed("synflow_pl") if words[0] == "prune"]
    plans = [command._command(resolve_or_exit(compared(words))) for words in prunings]
    assert [plan.subcommand for plan in plans] == ["prune"] * len(prunings)
    assert any("--compare" in words for words in prunings)
    (masking,) = [words for words in prunings if "mnist_fc" in words]
    command.prune([*masking[1:], *QUIET])
    (training,) = [words for words in typed("synflow_pl") if "--pruning.masks_path" in words]
    cli = run([*training, *QUIET, "--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu"])
    assert (
        sum(int(p.count_nonzero()) for p in cli.model.network.parameters() if p.dim() > 1) == 1194
    )


def compared(words: list[str]) -> list[str]:
    """A command with the first of the overlays that it compares."""
    if "--compare" not in words:
        return words
    at = words.index("--compare")
    overlays = words[at + 1 :]
    assert all(find_recipe(f"pruners/{overlay}") for overlay in overlays)
    return [*words[:at], "-c", f"pruners/{overlays[0]}"]


def test_its_torchrun_commands_start_a_training_that_is_understood(
    built: Callable[..., Session], folder: Path
) -> None:
    (words,) = typed("torchrun")
    at = words.index("-m")
    assert words[at + 1] == "synflow_pl"
    assert words[words.index("--nnodes") + 1] == words[words.index("--trainer.num_nodes") + 1]
    assert words[words.index("--nproc_per_node") + 1] == words[words.index("--trainer.devices") + 1]
    built(*words[at + 2 :])


def test_the_sbatch_script_of_a_sharded_training_is_understood(
    built: Callable[..., Session],
) -> None:
    (script,) = blocks("sh", paths=[HOW_TO / "sharded.md"])
    *options, command = script.splitlines()
    words = shlex.split(command)
    trainer = built(*words[2:], "--trainer.accelerator", "cpu").options.trainer
    for option, value in (
        ("nodes", trainer.num_nodes),
        ("ntasks-per-node", trainer.devices),
        ("gpus-per-node", trainer.devices),
    ):
        assert f"#SBATCH --{option}={value}" in options
    assert trainer.strategy.class_path.endswith("FullyShardStrategy")


def test_its_sbatch_script_has_ten_lines_and_its_training_is_understood(
    built: Callable[..., Session], folder: Path
) -> None:
    (script,) = blocks("sh", paths=[HOW_TO / "slurm.md"])
    lines = script.splitlines()
    assert len(lines) == 10
    assert lines[0] == "#!/bin/bash"
    options = dict(
        line.removeprefix("#SBATCH --").split("=") if "=" in line else (line, "")
        for line in lines[1:-1]
    )
    words = shlex.split(lines[-1])
    assert words[:3] == ["srun", "synflow_pl", "fit"]
    trainer = built(*words[2:], "--trainer.accelerator", "cpu").options.trainer
    # SLURM starts a task for each device, and Lightning insists on it.
    assert str(trainer.devices) == options["ntasks-per-node"] == options["gpus-per-node"]
    assert trainer.strategy == "ddp"
    if (
        shutil.which("sbatch")
        and subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode == 0
    ):
        here = [
            line for line in lines if not re.search("gpus|ntasks", line)
        ]  # which this machine does not have
        Path("job.sh").write_text("\n".join(here) + "\n")
        subprocess.run(["sbatch", "--test-only", "job.sh"], check=True, timeout=60)


def test_its_multishot_commands_are_understood(folder: Path) -> None:
    shots = [words[1:] for words in typed("synflow_pl") if words[0] == "multishot"]
    assert len(shots) >= 2
    for words in shots:
        own, plan = planned(words)
        assert own.levels == 5
        assert plan.options.pruning.pruner.class_path == "synflow_pl.pruners.Magnitude"
    assert list(folder.iterdir()) == []


def test_its_experiments_are_understood(built: Callable[..., Session], folder: Path) -> None:
    named = [words[1:] for words in typed("synflow_pl") if words[0] == "experiment"]
    assert {words[0] for words in named} == set(EXPERIMENTS)
    for words in named:
        experiment_planned([*words, "--trainer.accelerator", "cpu"])


def test_its_sweep_commands_are_understood_and_its_reports_are_of_sweeps_that_there_are(
    folder: Path,
) -> None:
    sweeps = [words[1:] for words in typed("synflow_pl") if words[0] == "sweep"]
    assert sweeps
    for words in sweeps:
        _own, grid, extra = parse_sweep(words)
        assert grid.tasks()
        assert extra == []
    for words in typed("synflow_pl"):
        if words[0] == "report":
            find_recipe(words[1])


def test_its_make_targets_are_there() -> None:
    makefile = (README.parent / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, flags=re.M))
    assert targets >= {"demo", "test", "docs"}
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_programs_that_it_runs_are_there() -> None:
    programs = set(re.findall(r"python (benchmarks/\w+\.py)", TEXT))
    modules = set(re.findall(r"python -m ((?:benchmarks|tests)[\w.]+\w)", TEXT))
    assert programs
    assert modules
    for path in [*programs, *(f"{module.replace('.', '/')}.py" for module in modules)]:
        assert (README.parent / path).is_file(), path


def test_every_recipe_overlay_pruner_network_and_data_set_stands_in_it() -> None:
    from synflow_pl import data, networks, pruners
    from synflow_pl.cli.recipes import recipe_folder

    folder = recipe_folder()
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]
    names += [name for name in (*data.__all__, *networks.__all__) if name != "ImageDataModule"]
    base = ("Pruner", "PruningState", "Saliency")
    names += [name for name in pruners.__all__ if name not in base]
    for text in (README.read_text(), TEXT):
        told = {name for quoted in re.findall(r"`([^`\n]+)`", text) for name in expanded(quoted)}
        told |= {name.removeprefix("-c ") for name in told}
        assert set(names) - told == set()
