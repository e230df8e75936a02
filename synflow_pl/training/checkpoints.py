"""Checkpoints: where masks are kept in one, where one is kept in a run, and how to get the plain
network back out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from synflow_pl.masks import Masks

__all__ = [
    "KEY",
    "attribute_of",
    "differences",
    "find_checkpoint",
    "load_masks",
    "load_weights",
    "read",
    "states",
    "under_names_of",
]

KEY = "synflow_pl"
"""The key of a checkpoint under which PruneAtInit stores ``network``, the prefix of the network's
weights, and ``masks`` (Masks.state_dict). Of several PruneAtInit in one Trainer, it holds these
under ``networks``, by that prefix.
"""


def states(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each PruneAtInit stored in a checkpoint, by the prefix of its network's weights.

    Args:
        content: Content of the checkpoint.

    Returns:
        The state of each callback under a prefix such as ``"network."``; empty if the checkpoint
        was written without PruneAtInit.
    """
    stored = content.get(KEY)
    if not stored:
        return {}
    networks: dict[str, dict[str, Any]] = (
        stored["networks"] if "networks" in stored else {stored.get("network", "network."): stored}
    )
    return networks


def attribute_of(prefix: str) -> str:
    """Return the attribute of the LightningModule that a prefix of parameter names belongs to,
    without what torch.compile adds.
    """
    return prefix.replace("_orig_mod.", "").removesuffix(".")


def _prefix(content: Mapping[str, Any], path: Path, attribute: str | None) -> str:
    """Return the prefix of one network's weights in a checkpoint: of the one there is, or of the
    one that is asked for.

    Raises:
        ValueError: if there are several and none of them is asked for.
    """
    stored = states(content)
    if len(stored) <= 1:
        return next(iter(stored), "network.")
    found = next(
        (
            prefix
            for prefix in stored
            if attribute is not None and attribute_of(prefix) == attribute
        ),
        None,
    )
    if found is None:
        names = ", ".join(repr(attribute_of(prefix)) for prefix in stored)
        asked = "none is asked for" if attribute is None else f"{attribute!r} is none of them"
        raise ValueError(
            f"{str(path)!r} holds several pruned networks, {names}, and {asked}; give attribute= one of these names"
        )
    return found


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that ``path`` means: a file itself, or the last one of a run's folder.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(
            f"no checkpoint at {str(path)!r}; expected a file of weights or a run's folder such as lightning_logs/NAME"
        )
    found = sorted(
        (path / "checkpoints").glob("*.ckpt"),
        key=lambda file: (file.name == "last.ckpt", file.stat().st_mtime),
    )
    if not found:
        raise FileNotFoundError(
            f"the run {str(path)!r} has no checkpoint (none in {str(path / 'checkpoints')!r}); did its training end?"
        )
    return found[-1]


def load_weights(
    network: nn.Module,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    attribute: str | None = None,
) -> nn.Module:
    """Load weights from a file into the plain network: those of a checkpoint or a run, a plain
    ``state_dict``, or a safetensors file.

    The file may hold them in nested dicts, such as ``{"model": state_dict, "epoch": 3}``, and under
    the names that DistributedDataParallel (``module.``), ``torch.compile`` (``_orig_mod.``), FSDP
    and attributes ``network`` and ``model`` of a LightningModule add, in any combination.

    Strict: every parameter and buffer must be there, nothing else may be. Read with
    ``weights_only``, so that a stranger's file cannot run code.

    Args:
        network: filled in place, or left as it is if an error is raised.
        path: a ``.ckpt`` file or a run's folder, a ``.safetensors`` file, or what
            ``torch.save(network.state_dict(), path)`` wrote.
        strict: ``False`` loads what fits by name and shape, and names the rest in a warning.
        attribute: Attribute of the LightningModule whose weights are loaded; needed only for a
            checkpoint of several pruned networks.

    Returns:
        The network.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, holds no weights, they are another network's, or several
            of its parts fit; or if it holds several pruned networks and ``attribute`` names none of
            them.
    """
    path = find_checkpoint(path)
    own = network.state_dict()
    state = _with_tied(_choose(_read(path, attribute), own, path, strict=strict), own)
    fitting = {
        name: tensor for name, tensor in state.items() if name in own and _fits(tensor, own[name])
    }
    if len(fitting) < max(len(own), len(state)):
        told = differences(state, own)
        if strict or not fitting:
            also = "" if not fitting else "; with strict false, what fits is loaded"
            raise ValueError(f"{str(path)!r} does not fit {type(network).__name__}: {told}{also}")
        rank_zero_warn(
            f"{str(path)!r} fills {len(fitting)} of {len(own)} tensors of {type(network).__name__}: {told}"
        )
    network.load_state_dict(fitting, strict=False)
    return network


def read(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """What is in a file of torch, which cannot run code: read with ``weights_only``, whatever
    anyone asks for.

    Raises:
        ValueError: if it cannot be read so.
    """
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except (
        Exception
    ) as error:  # what reading arbitrary bytes as a pickle may raise has no other bound
        first = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"{str(path)!r} cannot be read with weights_only; it is damaged, holds code, or is no file of torch: {first}"
        ) from error


_State = Mapping[str, Tensor]
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Attributes in which wrappers of a whole network or a submodule keep it."""
_ATTRIBUTES = ("network", "model")
"""Attributes in which a LightningModule usually keeps its network, beside losses and metrics with
tensors of their own.
"""
_USUAL = ("state_dict", "model_state_dict", "network_state_dict", *_ATTRIBUTES)
"""Keys under which files usually hold weights, beside averages of them and states of optimisers."""
_COUNTERS = ("n_averaged",)
"""Tensors that ``torch.optim.swa_utils.AveragedModel`` keeps beside the network in its attribute
``module``.
"""


def _read(path: Path, attribute: str | None) -> list[tuple[str, _State]]:
    """Return every part of a file of weights that may be the network's, with its place in the file,
    by the names in the file.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return [("", load_file(path))]
        except SafetensorError as error:
            raise ValueError(
                f"{str(path)!r} cannot be read as safetensors; it is damaged or something else: {error}"
            ) from error
    content = read(path)
    if (
        isinstance(content, Mapping)
        and KEY in content
        and isinstance(content.get("state_dict"), Mapping)
    ):
        prefix = _prefix(content, path, attribute)
        state = {
            name.removeprefix(prefix): value
            for name, value in content["state_dict"].items()
            if name.startswith(prefix)
        }
        if not state:
            raise ValueError(
                f"{str(path)!r} holds no weight whose name begins with {prefix!r}; was it written by another program?"
            )
        return [(prefix, state)]
    if parts := list(_parts(content)):
        return parts
    holds = (
        f"a dict of {', '.join(map(str, list(content)[:5]))}"
        if isinstance(content, Mapping)
        else f"a {type(content).__name__}"
    )
    raise ValueError(
        f"{str(path)!r} holds {holds}; expected a checkpoint, or a state_dict of tensors by name"
    )


def _parts(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, _State]]:
    """Yield the tensors of each dict of nested dicts, those under usual keys alone where there are
    any.
    """
    if not isinstance(content, Mapping):
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    if tensors := {name: value for name, value in named.items() if isinstance(value, Tensor)}:
        yield ".".join(place), tensors
    inner = {name: [*_parts(value, (*place, name))] for name, value in named.items()}
    usual = [part for name in _USUAL for part in inner.get(name, [])]
    yield from usual or (part for parts in inner.values() for part in parts)


def _choose(parts: list[tuple[str, _State]], own: _State, path: Path, *, strict: bool) -> _State:
    """Return the part of a file that fits a network best, by the network's names.

    Raises:
        ValueError: If two parts with different tensors fit equally well.
    """
    found = [
        (f"{place}.{inner}".strip("."), state)
        for place, part in parts
        for inner, state in _unwrapped(part, own)
    ]
    ranks = []
    for _, state in found:
        named = [name for name in state if name in own]
        fitting = sum(_fits(state[name], own[name]) for name in named)
        ranks.append((fitting == len(own) == len(state), fitting, len(named)))
    best = max(ranks)
    equal = [part for part, rank in zip(found, ranks, strict=True) if rank == best]
    place, state = equal[0]
    if best[0] or (best[1] and not strict):
        for other, tensors in equal[1:]:
            if not _same(state, tensors):
                raise ValueError(
                    f"{str(path)!r} is ambiguous: its weights under {place!r} and {other!r} fit the network equally well and differ;"
                    " save those that are meant in a file of their own"
                )
    return state


def _unwrapped(state: _State, own: _State) -> Iterator[tuple[str, _State]]:
    """Yield a state_dict under the names of a network: as it is, without wrappers, and the parts in
    usual attributes.
    """
    if own.keys() == state.keys():
        yield "", state
        return
    canonical = {_canonical(name): name for name in own}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = canonical.get(_canonical(name), _canonical(name))
        renamed[name if short in renamed or len(canonical) < len(own) else short] = tensor
    counters = (
        [] if own.keys() & {*_COUNTERS} else [name for name in _COUNTERS if renamed.keys() > {name}]
    )
    yield "", {name: tensor for name, tensor in renamed.items() if name not in counters}
    for attribute in _ATTRIBUTES:
        inside = {
            name.partition(".")[2]: value
            for name, value in renamed.items()
            if name.startswith(f"{attribute}.")
        }
        beside = [name for name in renamed if not name.startswith(f"{attribute}.")]
        if inside and not any(name in own for name in beside):
            for place, part in _unwrapped(inside, own):
                yield f"{attribute}.{place}".strip("."), part


def _canonical(name: str) -> str:
    """Return the name of a tensor without the attributes that wrappers add at any depth."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def under_names_of(own: Iterable[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a ``state_dict`` under the names of a module, without what DDP or ``torch.compile``
    adds to names.

    Args:
        own: names of the module's tensors.
        state: the ``state_dict``; a name that is not the module's, however it is wrapped, stays as
            it is.
    """
    names: dict[str, list[str]] = {}
    for name in own:
        names.setdefault(_canonical(name), []).append(name)
    known = set().union(*names.values())
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        same = names.get(_canonical(name), [])
        short = same[0] if len(same) == 1 and name not in known else name
        renamed[name if short in state and short != name else short] = tensor
    return renamed


def _fits(tensor: Tensor, own: Tensor) -> bool:
    return tensor.shape == own.shape and (tensor.is_floating_point() or not own.is_floating_point())


def _with_tied(state: _State, own: _State) -> _State:
    """Add tensors that the file stores once, since the network uses one tensor under several
    names.
    """
    known = {_memory(own[name]): tensor for name, tensor in state.items() if name in own}
    tied = {
        name: known[_memory(tensor)]
        for name, tensor in own.items()
        if name not in state and _memory(tensor) in known
    }
    return {**state, **tied}


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Return what two tensors have in common if and only if they are the same memory, read
    alike.
    """
    own = () if tensor.numel() and tensor.device.type != "meta" else (id(tensor),)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, *own


def _same(left: _State, right: _State) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(tensor, right[name]) for name, tensor in left.items()
    )


def differences(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """In what a file and a network differ, the first of each kind by name."""
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    shaped = [name for name in own if name in state and state[name].shape != own[name].shape]
    typed = [
        name
        for name in own
        if name in state and name not in shaped and not _fits(state[name], own[name])
    ]
    said = []
    if typed:
        first = typed[0]
        said.append(
            f"{_some(typed)} is {state[first].dtype} in the file and {own[first].dtype} in the network"
        )
    if shaped:
        first = shaped[0]
        said.append(
            f"{_some(shaped)} is {tuple(state[first].shape)} in the file and {tuple(own[first].shape)} in the network"
        )
    if missing:
        said.append(f"the file lacks {_some(missing)}")
    if unknown:
        said.append(f"the network has no {_some(unknown)}")
    return ", ".join(said)


def _some(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def load_masks(checkpoint: str | os.PathLike[str], attribute: str | None = None) -> Masks | None:
    """The masks that a checkpoint, or a run's last one, was trained under; ``None`` if it was
    trained dense.

    Args:
        checkpoint: A checkpoint or a run's folder.
        attribute: Attribute of the LightningModule whose masks are returned; needed only for a
            checkpoint of several pruned networks.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it holds several pruned networks and ``attribute`` names none of them.
    """
    path = find_checkpoint(checkpoint)
    content: Mapping[str, Any] = read(path)
    state = states(content).get(_prefix(content, path, attribute), {}).get("masks")
    return None if state is None else Masks.from_state_dict(state)
