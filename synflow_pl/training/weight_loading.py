"""Load plain weights from a checkpoint, a ``state_dict`` or a safetensors file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from synflow_pl.training.checkpoints import KEY, find_checkpoint, prefix_of, read
from synflow_pl.training.state_dict_matching import (
    ATTRIBUTES,
    State,
    choose,
    differences,
    fits,
    with_tied,
)

__all__ = ["load_weights"]

_USUAL = ("state_dict", "model_state_dict", "network_state_dict", *ATTRIBUTES)
"""Keys under which files usually hold weights.

Files may also hold averages of the weights and states of optimisers, under other keys.
"""


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
    state = with_tied(choose(_read(path, attribute), own, path, strict=strict), own)
    fitting = {
        name: tensor for name, tensor in state.items() if name in own and fits(tensor, own[name])
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


def _read(path: Path, attribute: str | None) -> list[tuple[str, State]]:
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
        prefix = prefix_of(content, path, attribute)
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


def _parts(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, State]]:
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
