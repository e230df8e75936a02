"""Match the tensors of a file to those of a network, by name and shape.

The names in a file may have prefixes of wrappers such as DistributedDataParallel, and a file may
hold several dicts of tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ATTRIBUTES",
    "State",
    "canonical",
    "choose",
    "differences",
    "fits",
    "under_names_of",
    "with_tied",
]

State = Mapping[str, Tensor]
"""Tensors by name, as in a ``state_dict``."""
ATTRIBUTES = ("network", "model")
"""Attributes in which a LightningModule usually keeps its network.

It may have other attributes with tensors, such as losses and metrics.
"""
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Attributes in which wrappers keep the network or submodule that they wrap."""
_COUNTERS = ("n_averaged",)
"""Tensors of ``torch.optim.swa_utils.AveragedModel`` that do not belong to the network."""


def choose(parts: list[tuple[str, State]], own: State, path: Path, *, strict: bool) -> State:
    """Return the part of a file that fits a network best, under the network's names.

    Args:
        parts: Pairs of a place in the file, such as ``"model.encoder"``, and the tensors there.
        own: Tensors of the network.
        path: Path of the file, for the message.
        strict: Whether only a part that fits exactly will be loaded.

    Raises:
        ValueError: If two parts with different tensors fit equally well.
    """
    candidates = [
        (f"{place}.{inner}".strip("."), state)
        for place, part in parts
        for inner, state in _unwrapped(part, own)
    ]
    ranks = []
    for _, state in candidates:
        named = [name for name in state if name in own]
        fitting = sum(fits(state[name], own[name]) for name in named)
        ranks.append((fitting == len(own) == len(state), fitting, len(named)))
    best = max(ranks)
    equal = [part for part, rank in zip(candidates, ranks, strict=True) if rank == best]
    place, state = equal[0]
    if best[0] or (best[1] and not strict):
        for other, tensors in equal[1:]:
            if not _same(state, tensors):
                raise ValueError(
                    f"{str(path)!r} is ambiguous: its weights under {place!r} and {other!r} fit the"
                    " network equally well and differ; save those that are meant in a file of their"
                    " own"
                )
    return state


def _unwrapped(state: State, own: State) -> Iterator[tuple[str, State]]:
    """Yield the ways to read a ``state_dict`` under the names of a network.

    These are the ``state_dict`` itself if its names are the network's; else the ``state_dict``
    without the prefixes of wrappers, and its parts in usual attributes (``ATTRIBUTES``).
    """
    if own.keys() == state.keys():
        yield "", state
        return
    plain = {canonical(name): name for name in own}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = plain.get(canonical(name), canonical(name))
        renamed[name if short in renamed or len(plain) < len(own) else short] = tensor
    counters = (
        [] if own.keys() & {*_COUNTERS} else [name for name in _COUNTERS if renamed.keys() > {name}]
    )
    yield "", {name: tensor for name, tensor in renamed.items() if name not in counters}
    for attribute in ATTRIBUTES:
        inside = {
            name.partition(".")[2]: value
            for name, value in renamed.items()
            if name.startswith(f"{attribute}.")
        }
        beside = [name for name in renamed if not name.startswith(f"{attribute}.")]
        if inside and not any(name in own for name in beside):
            for place, part in _unwrapped(inside, own):
                yield f"{attribute}.{place}".strip("."), part


def canonical(name: str) -> str:
    """Return the name of a tensor without the attributes that wrappers add at any depth.

    Args:
        name: Name in a ``state_dict`` or of a parameter.
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def under_names_of(own: Iterable[str], state: State) -> dict[str, Tensor]:
    """Return a ``state_dict`` with the prefixes of DDP and ``torch.compile`` as a module has them.

    Args:
        own: Names of the module's tensors.
        state: The ``state_dict``. A name that does not stand for a tensor of the module, with or
            without such prefixes, is left as it is.
    """
    names: dict[str, list[str]] = {}
    for name in own:
        names.setdefault(canonical(name), []).append(name)
    known = set().union(*names.values())
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        same = names.get(canonical(name), [])
        short = same[0] if len(same) == 1 and name not in known else name
        renamed[name if short in state and short != name else short] = tensor
    return renamed


def fits(tensor: Tensor, own: Tensor) -> bool:
    """Return whether a tensor of a file can be loaded into one of the network."""
    return tensor.shape == own.shape and (tensor.is_floating_point() or not own.is_floating_point())


def with_tied(state: State, own: State) -> State:
    """Add the missing names of tensors that the network uses under several names."""
    known = {_memory(own[name]): tensor for name, tensor in state.items() if name in own}
    tied = {
        name: known[_memory(tensor)]
        for name, tensor in own.items()
        if name not in state and _memory(tensor) in known
    }
    return {**state, **tied}


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key that two tensors share if and only if they are the same view of memory."""
    own = () if tensor.numel() and tensor.device.type != "meta" else (id(tensor),)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, *own


def _same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(tensor, right[name]) for name, tensor in left.items()
    )


def differences(state: State, own: State) -> str:
    """Describe how the tensors of a file differ from those of a network.

    Args:
        state: Tensors of the file, by name.
        own: Tensors of the network, by name.

    Returns:
        Text that names the first tensor of each kind of difference; empty if there is none.
    """
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    shaped = [name for name in own if name in state and state[name].shape != own[name].shape]
    typed = [
        name
        for name in own
        if name in state and name not in shaped and not fits(state[name], own[name])
    ]
    texts = []
    if typed:
        first = typed[0]
        texts.append(
            f"{_some(typed)} is {state[first].dtype} in the file and {own[first].dtype} in the"
            " network"
        )
    if shaped:
        first = shaped[0]
        texts.append(
            f"{_some(shaped)} is {tuple(state[first].shape)} in the file and"
            f" {tuple(own[first].shape)} in the network"
        )
    if missing:
        texts.append(f"the file lacks {_some(missing)}")
    if unknown:
        texts.append(f"the network has no {_some(unknown)}")
    return ", ".join(texts)


def _some(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
