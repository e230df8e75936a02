"""Write and read distributed checkpoints: folders to which each rank writes its shards.

The layout is that of Lightning's ``ModelParallelStrategy``: files of torch's distributed checkpoint
(DCP) and ``meta.pt`` with everything that is not sharded. A folder is written beside its final
path and renamed when it is complete. It is read without running code from it, and on any number of
ranks.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    _EmptyStateDictLoadPlanner,
)
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict, load
from torch.distributed.checkpoint.state_dict_saver import save

from synflow_pl.io import atomic_write

__all__ = ["is_sharded", "leftover", "load_shards", "outline", "read_shards", "write_shards"]

_UNSHARDED, _METADATA = "meta.pt", ".metadata"
_WRITING, _REPLACED = ".writing", ".replaced"


def is_sharded(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is the folder of a complete distributed checkpoint.

    Args:
        path: Path of a file or a folder, which need not exist.
    """
    return all((Path(path) / name).is_file() for name in (_UNSHARDED, _METADATA))


def write_shards(
    path: Path,
    sharded: dict[str, Any],
    unsharded: Mapping[str, Any],
    *,
    first: bool,
    barrier: Callable[[], None],
) -> None:
    """Write a distributed checkpoint, in place of an earlier one at the same path.

    Every rank has to call this function.

    Args:
        path: Path of the folder, on a file system that all ranks share.
        sharded: Nested dicts of tensors, of which each rank writes its shards, and of numbers,
            strings and lists of them.
        unsharded: Everything else; that of rank 0 is written.
        first: Whether this is rank 0.
        barrier: Function that waits for all ranks.

    Raises:
        OSError: If the folder cannot be written; an earlier checkpoint is unchanged.
    """
    writing, replaced = map(path.with_name, _names(path))
    if first:
        _recover(path)
        writing.mkdir(parents=True)
    barrier()
    save(sharded, storage_writer=FileSystemWriter(writing, single_file_per_rank=True))
    if first:
        with atomic_write(writing / _UNSHARDED) as file:
            torch.save(dict(unsharded), file)
        if path.exists():
            path.rename(replaced)
        writing.rename(path)
        _remove(replaced)
    barrier()


def leftover(path: Path) -> Path | None:
    """Return the complete checkpoint that a process left when it was killed while replacing it.

    Args:
        path: Path of a checkpoint.

    Returns:
        Folder beside ``path``; ``None`` if ``path`` exists or no complete checkpoint was left.
    """
    if path.exists():
        return None
    beside = map(path.with_name, _names(path))
    return next((left for left in beside if is_sharded(left) or left.is_file()), None)


def _recover(path: Path) -> None:
    """Complete the replacement of a checkpoint that a killed process did not complete."""
    if (left := leftover(path)) is not None:
        left.rename(path)
    for name in _names(path):
        _remove(path.with_name(name))


def _names(path: Path) -> tuple[str, str]:
    """Return the names beside a path of the next checkpoint and of the previous one."""
    return f".{path.name}{_WRITING}", f".{path.name}{_REPLACED}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def load_shards(path: Path, state: dict[str, Any]) -> None:
    """Read parts of a distributed checkpoint into tensors; every rank has to call this function.

    Args:
        path: Path of the folder.
        state: Nested dicts with the keys that are read. The values of tensors are read in place, on
            any number of ranks; other values are replaced.

    Raises:
        ValueError: If the folder is damaged or holds code.
    """
    with _reading(path):
        load(state, storage_reader=_Reader(path), planner=_Planner())


def read_shards(path: Path, keys: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the content of a distributed checkpoint with whole tensors, as of a single file.

    Args:
        path: Path of the folder.
        keys: Keys of the content to read, such as ``"state_dict"``, besides that of ``meta.pt``;
            ``None`` reads all of them.

    Raises:
        ValueError: If the folder is damaged or holds code.
    """
    content: dict[str, Any] = {}
    planner = _WholePlanner(keys=None if keys is None else set(keys))
    with _reading(path):
        _load_state_dict(content, storage_reader=_Reader(path), planner=planner, no_dist=True)
        return _complete(path, content)


def outline(path: Path) -> dict[str, Any]:
    """Return the content of a distributed checkpoint with tensors on the meta device.

    Names, shapes and types of tensors are then known without reading them.

    Args:
        path: Path of the folder.

    Raises:
        ValueError: If the folder is damaged or holds code.
    """
    content: dict[str, Any] = {}
    reader = _Reader(path)
    with _reading(path):
        _load_state_dict(content, storage_reader=reader, planner=_BytesPlanner(), no_dist=True)
        metadata = reader.read_metadata()
        for key, entry in metadata.state_dict_metadata.items():
            if isinstance(entry, TensorStorageMetadata):
                empty = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
                set_element(content, metadata.planner_data[key], empty)
        return _complete(path, content)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise errors of the reading as ValueErrors that name the path."""
    try:
        yield
    # Unpickling arbitrary bytes may raise an exception of any class. That of torch with the errors
    # of all ranks is no Exception.
    except (Exception, CheckpointException) as error:
        last = str(error).strip().rpartition("\n")[2]
        raise ValueError(
            f"{str(path)!r} cannot be read as a distributed checkpoint; it is damaged, holds code,"
            f" or lacks what is asked for: {last}"
        ) from error


def _complete(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Add the unsharded part, and the optimisers' states in the form of a single file."""
    count = sum(key.startswith("optimizer_") for key in content)
    states = [_by_index(content.pop(f"optimizer_{index}")) for index in range(count)]
    rest = torch.load(path / _UNSHARDED, map_location="cpu", weights_only=True)
    return {**rest, **content, **({"optimizer_states": states} if states else {})}


def _by_index(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimiser's state with the indices of parameters in place of their names."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    index = {name: position for position, name in enumerate(names)}
    stored = state.get("state", {})
    return {
        "state": {index[name]: stored[name] for name in names if name in stored},
        "param_groups": [
            {**group, "params": [index[name] for name in group["params"]]}
            for group in state["param_groups"]
        ],
    }


class _Unpickler(pickle.Unpickler):
    """Unpickler of a checkpoint's index that constructs descriptions of tensors only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HARMLESS or module in _DESCRIPTIONS:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


_DESCRIPTIONS = ("torch.distributed.checkpoint.metadata",)
_HARMLESS = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}


class _Reader(FileSystemReader):
    """Reader of the files of a distributed checkpoint that runs no code from its index."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / _METADATA).open("rb") as file:
            metadata: Metadata = _Unpickler(file).load()
        return metadata


class _WithoutCode:
    """Part of a planner that reads values other than tensors without running code."""

    original_state_dict: Any
    mappings: Any

    def load_bytes(self, read_item: Any, value: Any) -> None:
        keys = self.mappings[read_item.dest_index.fqn]
        set_element(self.original_state_dict, keys, torch.load(value, weights_only=True))


class _Planner(_WithoutCode, DefaultLoadPlanner):
    pass


class _WholePlanner(_WithoutCode, _EmptyStateDictLoadPlanner):
    pass


class _BytesPlanner(_WholePlanner):
    """Planner that reads everything but tensors."""

    def _should_include_key(self, key: str, metadata: Metadata) -> bool:
        return isinstance(metadata.state_dict_metadata[key], BytesStorageMetadata)
