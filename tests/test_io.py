"""Atomic writing: a file is complete under its name or does not exist."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from synflow_pl.io import atomic_write


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
