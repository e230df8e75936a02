"""Tests that a mistake in any subcommand's option is one sentence with the closest option."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from synflow_pl.__main__ import main

MISTAKES = {
    "report . --refrence snip": "there is no option refrence; did you mean reference?",
    "report . --output x": "there is no option output; did you mean out?",
    "report": "the following arguments are required: RUNS (runs, or folders of runs",
    "multishot -c demo --level 2": "there is no option level; did you mean levels?",
    "multishot -c demo": "the following arguments are required: --levels (number of prunings",
    "multishot -c demo --levels two": "levels: 'two' is not a whole number",
    "multishot -c demo --levels 2 --rewnid 1": "there is no option rewnid; did you mean rewind?",
    "multishot -c demo --levels 2 --pruning.densty 1": (
        "there is no option pruning.densty; did you mean pruning.density?"
    ),
    "prune -c demo --compre synflow snip": "there is no option compre; did you mean compare?",
    "prune -c demo --compare synflow snip --pruning.densty 1": (
        "there is no option pruning.densty; did you mean pruning.density?"
    ),
    "experiment unit -c demo": (
        "there is no experiment 'unit'; there are units, layers, magnitude, schedule; did you mean "
        "units?"
    ),
    "experiment units -c demo --pruner snip": "there is no option pruner; did you mean pruners?",
    "experiment units -c demo --noise much": "noise: 'much' is not a whole number",
    "experiment schedule -c demo --schedules liner": (
        "argument --schedules: invalid choice: 'liner' (choose from"
    ),
    "experiment magnitude -c demo --trainer.max_epoch 1": (
        "there is no option trainer.max_epoch; did you mean trainer.max_epochs?"
    ),
    "sweep -c sweeps/digits --dry_rn": "there is no option dry_rn; did you mean dry_run?",
    "sweep -c sweeps/digits --dry_run --pruning.densty 1": (
        "there is no option pruning.densty; did you mean pruning.density?"
    ),
    "sweep -c sweeps/digits --retires 2": "there is no option retires; did you mean retries?",
    "export --ckptpath x": "there is no option ckptpath; did you mean ckpt_path?",
    "export --ckpt_path x --format onx": "argument --format: invalid choice: 'onx' (choose from",
    "compact": "the following arguments are required: --ckpt_path (a run",
    "predict --ckpt_path model.onnx --data.predict_dir . --outptu x": (
        "there is no option outptu; did you mean output?"
    ),
    "demo --trainer.max_epoch 1": (
        "there is no option trainer.max_epoch; did you mean trainer.max_epochs?"
    ),
    "test --ckpt_pth x -c demo": "there is no option ckpt_pth; did you mean ckpt_path?",
    "validate -c demo --data.batch_sise 5": (
        "there is no option batch_sise; did you mean batch_size?"
    ),
}


def answer(
    typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Return the exit status and the only line that a command writes to standard error."""
    monkeypatch.setattr(sys, "argv", ["synflow_pl", *shlex.split(typed)])
    with pytest.raises(SystemExit) as raised:
        main()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    assert line.startswith("synflow_pl: error: ")
    return int(raised.value.code or 0), line.removeprefix("synflow_pl: error: ")


@pytest.mark.parametrize(("typed", "message"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_in_an_option_of_a_subcommand_is_one_sentence_with_the_closest_option(
    typed: str,
    message: str,
    folder: Path,
    touched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, line = answer(typed, monkeypatch, capsys)
    assert status == 2
    assert line.startswith(message)
    assert touched == []
    assert not list(folder.rglob("lightning_logs"))


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("report lightning_logs --out place/in", "--out"),
        ("sweep -c sweeps/digits --folder place/in", "--folder"),
        ("export --ckpt_path nowhere.ckpt --output place/in/model", "--output"),
        ("compact --ckpt_path nowhere.ckpt --output place/in/model", "--output"),
        ("predict --ckpt_path model.onnx --data.predict_dir . --output place/in/x.csv", "--output"),
        ("fit -c demo --trainer.default_root_dir place/in", "--trainer.default_root_dir"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_folder_that_cannot_be_made_is_named_with_its_option_before_any_work(
    command: str,
    option: str,
    kind: str,
    folder: Path,
    touched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if kind == "file":
        Path("place").touch()
    else:
        if command.startswith("sweep"):
            pytest.skip("a sweep makes the folder that a link names")
        os.symlink("gone", "place")
    status, line = answer(command, monkeypatch, capsys)
    assert status in (1, 2)
    why = (
        "'place' is a file; move it away"
        if kind == "file"
        else "'place' is a link to 'gone', which does not exist; remove the link"
    )
    if command.startswith("sweep"):
        why = "place/in' cannot be made or written into"
    assert why in line
    assert option in line
    assert touched == []
