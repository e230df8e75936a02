"""Tests of tests/processes.py: hanging commands fail in time, with the stacks of all processes."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException

from tests.processes import Command, Hanging, limited_ranks, run_command

# The first rank waits for a tensor that is never sent, the second waits in a barrier that the first
# never enters.
MISMATCH = """
import os, sys, torch
from torch import distributed, multiprocessing

def receive_on_the_first_rank():
    distributed.recv(torch.ones(3), src=1)

def meet_on_the_second_rank():
    distributed.barrier()

def work(rank):
    distributed.init_process_group("gloo", f"file://{sys.argv[1]}", rank=rank, world_size=2)
    distributed.barrier()
    os.write(1, f"rank {rank}\\n".encode())  # in one call: two ranks share the output
    if rank == 0:
        receive_on_the_first_rank()
    else:
        meet_on_the_second_rank()

if __name__ == "__main__":
    multiprocessing.start_processes(work, nprocs=2, start_method=sys.argv[2])
"""


@pytest.mark.parametrize("method", ["spawn", pytest.param("fork", marks=pytest.mark.slow)])
def test_ranks_in_different_collectives_fail_within_the_limit_with_both_stacks(
    tmp_path: Path, method: str
) -> None:
    (tmp_path / "mismatch.py").write_text(MISMATCH)
    began = time.monotonic()
    with Command(
        [sys.executable, "mismatch.py", tmp_path / "store", method],
        tmp_path,
        {"OMP_NUM_THREADS": "1"},
    ) as command:
        command.wait_for("rank 0")
        command.wait_for("rank 1")
        assert len(command.processes()) >= 3
        with pytest.raises(Hanging, match=r"mismatch.py[\s\S]*did not end within") as raised:
            command.wait(2)
        assert not command.processes()
    message = str(raised.value)
    assert "in receive_on_the_first_rank" in message
    assert "in meet_on_the_second_rank" in message
    assert time.monotonic() - began < 60


def test_a_command_that_ends_returns_its_status_and_all_its_output(tmp_path: Path) -> None:
    code = (
        "import os, sys; print(os.getcwd()); print(os.environ['ANY'], file=sys.stderr); sys.exit(3)"
    )
    done = run_command([sys.executable, "-c", code], tmp_path, {"ANY": "value"})
    assert (done.returncode, done.output.split()) == (3, [str(tmp_path.resolve()), "value"])


def test_a_process_that_is_left_behind_in_another_session_is_killed_and_named(
    tmp_path: Path,
) -> None:
    code = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; "
        "time.sleep(99)'], start_new_session=True)"
    )
    with Command([sys.executable, "-c", code], tmp_path) as command:
        with pytest.raises(Hanging, match="ended with 0 and left processes behind") as raised:
            command.wait(30, grace=0.5)
        assert "time.sleep(99)" in str(raised.value)
        assert not command.processes()


def test_a_command_that_ends_too_early_fails_with_its_output(tmp_path: Path) -> None:
    with (
        Command([sys.executable, "-c", "print('hello')"], tmp_path) as command,
        pytest.raises(AssertionError, match="hello"),
    ):
        command.wait_for("farewell")


def test_a_signal_reaches_the_command(tmp_path: Path) -> None:
    with Command(
        [sys.executable, "-c", "print('here', flush=True); import time; time.sleep(99)"], tmp_path
    ) as command:
        command.wait_for("here")
        command.send(signal.SIGTERM)
        assert command.wait(20).returncode == -signal.SIGTERM


def mismatch(rank: int, store: str) -> None:
    distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    if rank == 0:
        distributed.recv(torch.ones(3), src=1)
    else:
        distributed.barrier()


@pytest.mark.usefixtures("one_thread")
def test_forked_ranks_in_different_collectives_fail_within_the_limit_with_both_stacks(
    tmp_path: Path,
) -> None:
    with (
        pytest.raises(Hanging, match="longer than") as raised,
        limited_ranks(3),
        pytest.raises(ProcessExitedException),
    ):
        multiprocessing.start_processes(
            mismatch, (str(tmp_path / "store"),), nprocs=2, start_method="fork"
        )
    message = str(raised.value)
    assert message.count("--- process") == 2
    assert "in recv" in message
    assert "in barrier" in message
