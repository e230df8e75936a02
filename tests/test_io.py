"""Atomic writing (a file is complete under its name or does not exist) and locks on files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from synflow_pl.io import atomic_write, lock_file


def test_an_error_leaves_the_previous_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file"
    with atomic_write(path) as file:
        file.write(b"first")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"sec", 2])  # type: ignore[list-item]
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


def test_a_path_that_is_not_a_regular_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with (
            pytest.raises(
                OSError, match=rf"{name}' exists and is not a regular file; choose another path"
            ),
            atomic_write(tmp_path / name),
        ):
            pass
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_that_cannot_be_created_is_named_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"file/more' could not be written \(File exists\)"),
        atomic_write(tmp_path / "file" / "more"),
    ):
        pass


def test_a_file_is_locked_by_one_process_at_a_time_and_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "note"
    path.write_text("content")
    with lock_file(path) as first, lock_file(path) as second:
        assert first is not None
        assert second is None
    with lock_file(path) as again:
        assert again is not None
    assert path.read_text() == "content"


HOLDS = """
import subprocess, sys
from synflow_pl.io import lock_file
with lock_file(sys.argv[1]) as file:
    child = subprocess.Popen(["sleep", "60"], pass_fds=[file.fileno()] * (sys.argv[2] == "yes"))
    print(child.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("inherited", ["yes", "no"])
def test_the_lock_of_a_killed_process_is_free_unless_a_child_has_inherited_it(
    inherited: str, tmp_path: Path
) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDS, str(path), inherited]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        with lock_file(path) as file:
            assert file is None
        process.kill()
    try:
        with lock_file(path) as file:
            assert (file is None) == (inherited == "yes")
    finally:
        os.kill(child, signal.SIGKILL)
