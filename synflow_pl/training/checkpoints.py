"""Checkpoints: where masks are kept in one, where one is kept in a run, and how to get the plain network back out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from synflow_pl.masks import Masks

__all__ = ["KEY", "attribute_of", "differences", "find_checkpoint", "load_masks", "load_weights", "read", "states"]

KEY = "synflow_pl"
"""The key of a checkpoint under which PruneAtInit stores ``network``, the prefix of the network's weights, and ``masks``
(Masks.state_dict). Of several PruneAtInit in one Trainer, it holds these under ``networks``, by that prefix."""


def states(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each PruneAtInit stored in a checkpoint, by the prefix of its network's weights.

    Args:
        content: Content of the checkpoint.

    Returns:
        The state of each callback under a prefix such as ``"network."``; empty if the checkpoint was written without PruneAtInit.
    """
    stored = content.get(KEY)
    if not stored:
        return {}
    networks: dict[str, dict[str, Any]] = stored["networks"] if "networks" in stored else {stored.get("network", "network."): stored}
    return networks


def attribute_of(prefix: str) -> str:
    """Return the attribute of the LightningModule that a prefix of parameter names belongs to, without what torch.compile adds."""
    return prefix.replace("_orig_mod.", "").removesuffix(".")


def _prefix(content: Mapping[str, Any], path: Path, attribute: str | None) -> str:
    """Return the prefix of one network's weights in a checkpoint: of the one there is, or of the one that is asked for.

    Raises:
        ValueError: if there are several and none of them is asked for.
    """
    stored = states(content)
    if len(stored) <= 1:
        return next(iter(stored), "network.")
    found = next((prefix for prefix in stored if attribute is not None and attribute_of(prefix) == attribute), None)
    if found is None:
        names = ", ".join(repr(attribute_of(prefix)) for prefix in stored)
        asked = "none is asked for" if attribute is None else f"{attribute!r} is none of them"
        raise ValueError(f"{str(path)!r} holds several pruned networks, {names}, and {asked}; give attribute= one of these names")
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
    found = sorted((path / "checkpoints").glob("*.ckpt"), key=lambda file: (file.name == "last.ckpt", file.stat().st_mtime))
    if not found:
        raise FileNotFoundError(
            f"the run {str(path)!r} has no checkpoint (none in {str(path / 'checkpoints')!r}); did its training end?"
        )
    return found[-1]


def load_weights(network: nn.Module, path: str | os.PathLike[str], *, strict: bool = True, attribute: str | None = None) -> nn.Module:
    """Load weights from a file into the plain network: those of a checkpoint or a run, a plain ``state_dict``, or a safetensors file.

    Strict: every parameter and buffer must be there, nothing else may be. Read with ``weights_only``, so that a stranger's file
    cannot run code.

    Args:
        network: filled in place, or left as it is if an error is raised.
        path: a ``.ckpt`` file or a run's folder, a ``.safetensors`` file, or what ``torch.save(network.state_dict(), path)`` wrote.
        strict: ``False`` loads what fits by name and shape, and names the rest in a warning.
        attribute: Attribute of the LightningModule whose weights are loaded; needed only for a checkpoint of several pruned networks.

    Returns:
        The network.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, holds no weights, or they are another network's; or if it holds several pruned networks and
            ``attribute`` names none of them.
    """
    path = find_checkpoint(path)
    state, own = _read(path, attribute), network.state_dict()
    fitting = {name: tensor for name, tensor in state.items() if name in own and tensor.shape == own[name].shape}
    if len(fitting) < max(len(own), len(state)):
        told = differences(state, own)
        if strict or not fitting:
            also = "" if not fitting else "; with strict false, what fits is loaded"
            raise ValueError(f"{str(path)!r} does not fit {type(network).__name__}: {told}{also}")
        rank_zero_warn(f"{str(path)!r} fills {len(fitting)} of {len(own)} tensors of {type(network).__name__}: {told}")
    network.load_state_dict(fitting, strict=False)
    return network


def read(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """What is in a file of torch, which cannot run code: read with ``weights_only``, whatever anyone asks for.

    Raises:
        ValueError: if it cannot be read so.
    """
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # what reading arbitrary bytes as a pickle may raise has no other bound
        first = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"{str(path)!r} cannot be read with weights_only; it is damaged, holds code, or is no file of torch: {first}"
        ) from error


def _read(path: Path, attribute: str | None) -> Mapping[str, Tensor]:
    """The network's part of a file of weights, by the network's own names."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{str(path)!r} cannot be read as safetensors; it is damaged or something else: {error}") from error
    content = read(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        prefix = _prefix(content, path, attribute)
        state = {name.removeprefix(prefix): value for name, value in content["state_dict"].items() if name.startswith(prefix)}
        if not state:
            raise ValueError(f"{str(path)!r} holds no weight whose name begins with {prefix!r}; was it written by another program?")
        return state
    if isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values()):
        return content
    holds = f"a dict of {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise ValueError(f"{str(path)!r} holds {holds}; expected a checkpoint, or a state_dict of tensors by name")


def differences(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """In what a file and a network differ, the first of each kind by name."""
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    shaped = [name for name in own if name in state and state[name].shape != own[name].shape]
    said = []
    if shaped:
        first = shaped[0]
        said.append(f"{_some(shaped)} is {tuple(state[first].shape)} in the file and {tuple(own[first].shape)} in the network")
    if missing:
        said.append(f"the file lacks {_some(missing)}")
    if unknown:
        said.append(f"the network has no {_some(unknown)}")
    return ", ".join(said)


def _some(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def load_masks(checkpoint: str | os.PathLike[str], attribute: str | None = None) -> Masks | None:
    """The masks that a checkpoint, or a run's last one, was trained under; ``None`` if it was trained dense.

    Args:
        checkpoint: A checkpoint or a run's folder.
        attribute: Attribute of the LightningModule whose masks are returned; needed only for a checkpoint of several pruned networks.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it holds several pruned networks and ``attribute`` names none of them.
    """
    path = find_checkpoint(checkpoint)
    content: Mapping[str, Any] = read(path)
    state = states(content).get(_prefix(content, path, attribute), {}).get("masks")
    return None if state is None else Masks.from_state_dict(state)
