"""A sharded training that is killed resumes and ends as the undisturbed one does."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from test_sharded import alone, assert_close, launch

from tests.processes import Command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

RESUMED = "Restoring states from the checkpoint path"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of the end of an undisturbed training in one process."""
    return alone(tmp_path_factory.mktemp("undisturbed"), "interrupted") / "interrupted/end.ckpt"


def ranks(command: Command) -> list[int]:
    """Return the ids of the processes that train, without torchrun's own."""
    started = []
    for pid in command.processes():
        with contextlib.suppress(OSError):  # it has ended
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            started += [pid] if b"\0LOCAL_RANK=" in environment else []
    return started


def steps(folder: Path) -> int:
    """Return the number of steps that the running training has written."""
    path = folder / "interrupted/steps"
    return int(path.read_text() or 0) if path.is_file() else 0


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it has ended with another one
            os.kill(pid, signal.SIGKILL)


def test_ten_kills_at_random_moments_do_not_change_a_training(
    tmp_path: Path, undisturbed: Path
) -> None:
    chance = random.Random(0)
    for number in range(10):
        processes, path = (2, 4)[number % 2], tmp_path / "interrupted/steps"
        path.unlink(missing_ok=True)
        with launch(tmp_path, processes, ["interrupted"]) as command:
            if number == 0:  # while the ranks start
                command.wait_until(lambda n=processes: len(ranks(command)) >= n, 120)
                time.sleep(chance.uniform(0, 2))
            elif number == 1:  # while they prune and shard, or in the first steps
                command.wait_for("GPU available", 120)
                time.sleep(chance.uniform(0, 0.5))
            else:
                command.wait_until(lambda n=number: steps(tmp_path) >= 3 * n, 120)
                time.sleep(chance.uniform(0, 0.1))
            # One rank dies, or the whole machine does.
            kill(command.processes() if number % 3 == 2 else [chance.choice(ranks(command))])
            done = command.wait(120)
        assert done.returncode != 0
        assert not (tmp_path / "interrupted/end.ckpt").exists()
        assert number < 3 or RESUMED in done.output
    with launch(tmp_path, 2, ["interrupted"]) as command:
        done = command.wait(120)
    assert done.returncode == 0, done.output[-4000:]
    assert_close(tmp_path / "interrupted/end.ckpt", undisturbed)


def test_a_killed_rank_is_restarted_by_torchrun(tmp_path: Path, undisturbed: Path) -> None:
    with launch(tmp_path, 2, ["interrupted"], "--max-restarts=2") as command:
        command.wait_until(lambda: steps(tmp_path) >= 20, 120)
        kill(ranks(command)[1:])
        done = command.wait(120)
    assert done.returncode == 0, done.output[-4000:]
    assert RESUMED in done.output
    assert_close(tmp_path / "interrupted/end.ckpt", undisturbed)
