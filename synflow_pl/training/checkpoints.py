"""Find checkpoints, and load plain weights and masks from them."""

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
"""Key of a checkpoint under which PruneAtInit stores its state.

The state has the entries ``network``, the prefix of the network's weights, and ``masks``
(``Masks.state_dict()``). With several PruneAtInit in one Trainer, the entry ``networks`` maps each
prefix to such a state.
"""


def states(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each PruneAtInit stored in a checkpoint, by the prefix of its network's weights.

    Args:
        content: Content of the checkpoint.

    Returns:
        State of each callback, under a prefix such as ``"network."``; empty if the checkpoint was
        written without PruneAtInit.
    """
    stored = content.get(KEY)
    if not stored:
        return {}
    networks: dict[str, dict[str, Any]] = (
        stored["networks"] if "networks" in stored else {stored.get("network", "network."): stored}
    )
    return networks


def attribute_of(prefix: str) -> str:
    """Return the attribute of the LightningModule that a prefix of parameter names stands for.

    The part that ``torch.compile`` adds to names is left out.

    Args:
        prefix: Prefix such as ``"network."`` or ``"network._orig_mod."``.
    """
    return prefix.replace("_orig_mod.", "").removesuffix(".")


def _prefix(content: Mapping[str, Any], path: Path, attribute: str | None) -> str:
    """Return the prefix of the weights of one pruned network in a checkpoint.

    Args:
        content: Content of the checkpoint.
        path: Path of the checkpoint, for the message.
        attribute: Attribute of the LightningModule that holds the network; not used if the
            checkpoint has a single pruned network.

    Raises:
        ValueError: If there are several pruned networks and ``attribute`` names none of them.
    """
    stored = states(content)
    if len(stored) <= 1:
        return next(iter(stored), "network.")
    chosen = next(
        (
            prefix
            for prefix in stored
            if attribute is not None and attribute_of(prefix) == attribute
        ),
        None,
    )
    if chosen is None:
        names = ", ".join(repr(attribute_of(prefix)) for prefix in stored)
        asked = "none is asked for" if attribute is None else f"{attribute!r} is none of them"
        raise ValueError(
            f"{str(path)!r} holds several pruned networks, {names}, and {asked}; give attribute="
            " one of these names"
        )
    return chosen


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return the path of a checkpoint, given a file or the folder of a run.

    Args:
        path: Path of a file, which is returned as it is, or of a run's folder, of which
            ``checkpoints/last.ckpt`` is returned, else the checkpoint written last.

    Raises:
        FileNotFoundError: If there is no such file, or the run has no checkpoint.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from synflow_pl.training import find_checkpoint
        >>> with TemporaryDirectory() as run:
        ...     checkpoint = Path(run, "checkpoints", "last.ckpt")
        ...     checkpoint.parent.mkdir()
        ...     checkpoint.touch()
        ...     find_checkpoint(run).name
        'last.ckpt'
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(
            f"no checkpoint at {str(path)!r}; expected a file of weights or a run's folder such as"
            " lightning_logs/NAME"
        )
    checkpoints = sorted(
        (path / "checkpoints").glob("*.ckpt"),
        key=lambda file: (file.name == "last.ckpt", file.stat().st_mtime),
    )
    if not checkpoints:
        raise FileNotFoundError(
            f"the run {str(path)!r} has no checkpoint (none in {str(path / 'checkpoints')!r}); did"
            " its training end?"
        )
    return checkpoints[-1]


def load_weights(
    network: nn.Module,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    attribute: str | None = None,
) -> nn.Module:
    """Load the weights of a checkpoint, a run, a ``state_dict`` or a safetensors file.

    The file may hold the weights in nested dicts, such as ``{"model": state_dict, "epoch": 3}``,
    and under names with the prefixes that DistributedDataParallel (``module.``), ``torch.compile``
    (``_orig_mod.``), FSDP and the attributes ``network`` and ``model`` of a LightningModule add, in
    any combination. It is read with ``weights_only=True``, so that a file from an untrusted source
    cannot run code.

    Args:
        network: Network that is changed in place; it stays as it is if an error is raised.
        path: Path of a ``.ckpt`` file, of a run's folder, of a ``.safetensors`` file, or of a file
            that ``torch.save(network.state_dict(), path)`` wrote.
        strict: Whether the file must have every parameter and buffer of the network and no other
            tensor. Otherwise the tensors that fit by name and shape are loaded, and a warning names
            the rest.
        attribute: Attribute of the LightningModule whose weights are loaded; needed only for a
            checkpoint of several pruned networks.

    Returns:
        The network.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, holds no weights or those of another network, or if
            several different parts of it fit; or if it holds several pruned networks and
            ``attribute`` names none of them.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> from synflow_pl.training import load_weights
        >>> trained, network = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"model": trained.state_dict(), "epoch": 3}, f"{folder}/weights.pt")
        ...     _ = load_weights(network, f"{folder}/weights.pt")
        >>> torch.equal(network.weight, trained.weight)
        True
    """
    path = find_checkpoint(path)
    own = network.state_dict()
    state = _with_tied(_choose(_read(path, attribute), own, path, strict=strict), own)
    fitting = {
        name: tensor for name, tensor in state.items() if name in own and _fits(tensor, own[name])
    }
    if len(fitting) < max(len(own), len(state)):
        difference = differences(state, own)
        if strict or not fitting:
            also = "" if not fitting else "; with strict false, what fits is loaded"
            raise ValueError(
                f"{str(path)!r} does not fit {type(network).__name__}: {difference}{also}"
            )
        rank_zero_warn(
            f"{str(path)!r} fills {len(fitting)} of {len(own)} tensors of"
            f" {type(network).__name__}: {difference}"
        )
    network.load_state_dict(fitting, strict=False)
    return network


def read(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """Return the content of a file that ``torch.save`` wrote, without running code from it.

    Args:
        path: Path of the file, which is read with ``weights_only=True``.
        map_location: Device of the tensors, as for :func:`torch.load`.

    Raises:
        ValueError: If the file cannot be read with ``weights_only=True``.
    """
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    # Unpickling arbitrary bytes may raise an exception of any class.
    except Exception as error:
        first = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"{str(path)!r} cannot be read with weights_only; it is damaged, holds code, or is no"
            f" file of torch: {first}"
        ) from error


_State = Mapping[str, Tensor]
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Attributes in which wrappers keep the network or submodule that they wrap."""
_ATTRIBUTES = ("network", "model")
"""Attributes in which a LightningModule usually keeps its network.

It may have other attributes with tensors, such as losses and metrics.
"""
_USUAL = ("state_dict", "model_state_dict", "network_state_dict", *_ATTRIBUTES)
"""Keys under which files usually hold weights.

Files may also hold averages of the weights and states of optimisers, under other keys.
"""
_COUNTERS = ("n_averaged",)
"""Tensors of ``torch.optim.swa_utils.AveragedModel`` that do not belong to the network."""


def _read(path: Path, attribute: str | None) -> list[tuple[str, _State]]:
    """Return every ``state_dict`` in a file that may be the network's.

    Returns:
        Pairs of the place in the file, such as ``"model.encoder"``, and a ``state_dict`` with the
        names that the file uses.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return [("", load_file(path))]
        except SafetensorError as error:
            raise ValueError(
                f"{str(path)!r} cannot be read as safetensors; it is damaged or something else:"
                f" {error}"
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
                f"{str(path)!r} holds no weight whose name begins with {prefix!r}; was it written"
                " by another program?"
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
    """Yield the place and the tensors of each dict with tensors in nested dicts.

    If a dict has tensors under usual keys (``_USUAL``), its other keys are skipped.
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
    """Return the part of a file that fits a network best, under the network's names.

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
        fitting = sum(_fits(state[name], own[name]) for name in named)
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


def _unwrapped(state: _State, own: _State) -> Iterator[tuple[str, _State]]:
    """Yield the ways to read a ``state_dict`` under the names of a network.

    These are the ``state_dict`` itself if its names are the network's; else the ``state_dict``
    without the prefixes of wrappers, and its parts in usual attributes (``_ATTRIBUTES``).
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
    """Return a ``state_dict`` with the prefixes of DDP and ``torch.compile`` as a module has them.

    Args:
        own: Names of the module's tensors.
        state: The ``state_dict``. A name that does not stand for a tensor of the module, with or
            without such prefixes, is left as it is.
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


def _same(left: _State, right: _State) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(tensor, right[name]) for name, tensor in left.items()
    )


def differences(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
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
        if name in state and name not in shaped and not _fits(state[name], own[name])
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


def load_masks(checkpoint: str | os.PathLike[str], attribute: str | None = None) -> Masks | None:
    """Return the masks in a checkpoint, or ``None`` if its network was trained dense.

    Args:
        checkpoint: Path of a checkpoint or of a run's folder, whose last checkpoint is read.
        attribute: Attribute of the LightningModule whose masks are returned; needed only for a
            checkpoint of several pruned networks.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If it holds several pruned networks and ``attribute`` names none of them.
    """
    path = find_checkpoint(checkpoint)
    content: Mapping[str, Any] = read(path)
    state = states(content).get(_prefix(content, path, attribute), {}).get("masks")
    return None if state is None else Masks.from_state_dict(state)
