"""Keep pruned weights at zero if something other than an optimiser writes to them during training.

The hook :class:`synflow_pl.optimizer_hook.Hold` sets pruned weights to zero after each optimiser
step. They are written at other times by a callback that adds noise, by rewinding, by a wrapper of
an optimiser or by copying an average into the network; and averages are copied before there are
masks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from synflow_pl.masks import Masks

__all__ = ["Zeros", "tensors_outside_networks"]

_SAMPLE = 4096
"""Number of pruned weights of a tensor that are compared to decide whether it is an average."""

Tensors = Callable[[], Iterator[tuple[str, Tensor]]]


class Zeros:
    """Set pruned weights to zero in a network and in averages of it where they are not.

    :meth:`check` is called before each validation and, by a hook, whenever the network's
    ``state_dict()`` is read, so every checkpoint has the zeros, even one with weights only. It
    costs one pass over the weights.

    An average that Lightning does not maintain is recognised by its values: its pruned weights all
    shrink by the same factor, since they are averaged with zeros. Those of another network, such as
    a dense teacher, do not. Once masks have moved, a factor of zero no longer counts: a copy of the
    weights of an earlier step has it too when a copy of a later step replaces it.

    Args:
        prefix: Prefix of the network's parameter names, for messages.
        candidates: Function that yields tensors outside the network that may be averages, with
            their names.
        averages: Function that yields the networks in the averages that Lightning's callbacks
            maintain.

    Attributes:
        written: Whether something other than an optimiser step has written to pruned weights.
    """

    def __init__(
        self, prefix: str, candidates: Tensors, averages: Callable[[], Iterator[nn.Module]]
    ) -> None:
        self.prefix, self.candidates, self.averages = prefix, candidates, averages
        self.written = False
        self._network: nn.Module | None = None
        self._pairs: dict[str, tuple[nn.Parameter, Tensor]] = {}
        self._samples: dict[str, tuple[Tensor, Tensor]] = {}
        self._recognised: dict[str, str] = {}
        self._handle: Any = None
        self._fresh = self._moved = False

    def hold(self, network: nn.Module, masks: Masks) -> None:
        """Use these masks from now on.

        Args:
            network: Network that is trained, with pruned weights that are zero.
            masks: Masks of the network, by parameter name.
        """
        before = self._pairs
        self._watch(network)
        present = dict(network.named_parameters(remove_duplicate=False))
        self._pairs = {
            name: (present[name], ~mask.to(present[name].device)) for name, mask in masks.items()
        }
        self._moved = self._moved or any(
            bool((before[name][1].to(removed.device) & ~removed).any())
            for name, (_, removed) in self._pairs.items()
            if name in before
        )

    def _watch(self, network: nn.Module) -> None:
        """Check a network, in place of another one, before its ``state_dict()`` is read."""
        self.release()
        self._network, self._fresh = network, True
        self._handle = network.register_state_dict_pre_hook(_BeforeStateDict(self))

    def release(self) -> None:
        """Stop checking."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._network, self._pairs = None, None, {}

    def check_batch(self, index: int) -> None:
        """Check at a training batch, if it is one of the first or something has written weights.

        Args:
            index: Index of the batch in its epoch.
        """
        if self._pairs and (self.written or self._fresh or index < 2):
            self.check()
            self._fresh = False

    @torch.no_grad()
    def check(self) -> None:
        """Set pruned weights to zero where they are not, and warn once, naming a parameter."""
        if self._network is None:
            return
        if names := _zero(self._pairs):
            if not self.written:
                rank_zero_warn(self._message(names))
            self.written = True
        for average in self.averages():
            present = dict(average.named_parameters(remove_duplicate=False))
            _zero(
                {
                    name: (present[name], removed)
                    for name, (_, removed) in self._pairs.items()
                    if name in present
                }
            )
        self._check_candidates()

    def _message(self, names: list[str]) -> str:
        return (
            "Pruning: something other than an optimizer step wrote to removed weights of"
            f" {_some(self.prefix, names)}; they are set to zero again before each batch,"
            " validation and checkpoint"
        )

    def _check_candidates(self) -> None:
        """Set pruned weights to zero in tensors that are recognised as averages."""
        own = (
            {id(parameter) for parameter in self._network.parameters()}
            if self._network is not None
            else set()
        )
        new: list[str] = []
        for label, tensor in self.candidates():
            name = self._recognised.get(label) or self._counterpart(label, tensor)
            if name is None or id(tensor) in own or (tensor.is_leaf and tensor.grad is not None):
                continue
            removed = self._pairs[name][1].to(tensor.device)
            if label not in self._recognised and self._shrinks(label, tensor, removed):
                self._recognised[label] = name
                new.append(label)
            if label in self._recognised and tensor.shape == removed.shape:
                tensor.masked_fill_(removed, 0)
        if new:
            rank_zero_warn(
                f"Pruning: {_some('', new)} {'averages' if len(new) == 1 else 'average'} weights of"
                " the network and held removed weights that are not zero; they are set to zero"
                " there before each validation and checkpoint"
            )

    def _counterpart(self, label: str, tensor: Tensor) -> str | None:
        """Return the parameter that a tensor may be an average of, or ``None``.

        It has the shape of the tensor, and either a matching name or no other parameter has that
        shape.
        """
        if not tensor.is_floating_point():
            return None
        plain = _plain(label)
        same = [
            name for name, (parameter, _) in self._pairs.items() if parameter.shape == tensor.shape
        ]
        named = [name for name in same if plain.endswith(_plain(name))]
        if named:
            return max(named, key=len)
        return same[0] if len(same) == 1 else None

    def _shrinks(self, label: str, tensor: Tensor, removed: Tensor) -> bool:
        """Return whether all pruned weights have shrunk by one factor since the last check."""
        flat = tensor.detach().flatten()
        if label in self._samples:
            places, before = self._samples[label]
            now = flat[places.to(flat.device)].double().cpu()
            factor = float(now @ before / (before @ before))
            close = (now - factor * before).abs() <= 1e-3 * factor * before.abs() + 1e-30
            lowest = 1e-6 if self._moved else 0
            if len(places) > 1 and lowest <= factor < 1 - 1e-6 and bool(close.all()):
                del self._samples[label]
                return True
            if torch.equal(now, before):
                return False
        places = (removed.flatten() & (flat != 0) & flat.isfinite()).nonzero().squeeze(1)
        places = places[:: max(1, len(places) // _SAMPLE)]
        self._samples.pop(label, None)
        if len(places):
            self._samples[label] = (places.cpu(), flat[places].double().cpu())
        return False


class _BeforeStateDict:
    """Hook that sets pruned weights to zero before a ``state_dict()`` is read.

    A copy of the hook, in a copy of the network, has no effect.
    """

    def __init__(self, zeros: Zeros | None = None) -> None:
        self._zeros = weakref.ref(zeros) if zeros is not None else None

    def __call__(self, module: nn.Module, *_: Any) -> None:
        zeros = self._zeros() if self._zeros is not None else None
        if zeros is not None and zeros._network is module:
            zeros.check()

    def __reduce__(self) -> tuple[Any, ...]:
        return _BeforeStateDict, ()


def _zero(pairs: dict[str, tuple[nn.Parameter, Tensor]]) -> list[str]:
    """Set pruned weights to zero, and return the names of the parameters in which they were not."""
    if not pairs:
        return []
    removed = {name: pruned.to(parameter.device) for name, (parameter, pruned) in pairs.items()}
    filled = [
        (name, parameter)
        for name, (parameter, _) in pairs.items()
        if parameter.shape == removed[name].shape
    ]
    if not filled:
        return []
    marks = torch.stack(
        [parameter.masked_fill(~removed[name], 0).any() for name, parameter in filled]
    ).tolist()
    written = [
        (name, parameter) for (name, parameter), mark in zip(filled, marks, strict=True) if mark
    ]
    for name, parameter in written:
        parameter.masked_fill_(removed[name], 0)
    return [name for name, _ in written]


def _some(prefix: str, names: list[str]) -> str:
    return f"{prefix}{names[0]}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _plain(name: str) -> str:
    return name.replace(".", "").replace("_", "")


def tensors_outside_networks(
    trainer: Trainer, pl_module: LightningModule, skip: set[int]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of a module and its callbacks outside the pruned networks.

    Args:
        trainer: Trainer whose callbacks are searched, except Lightning's averages.
        pl_module: Module whose parameters, buffers and attributes with tensors or modules are
            searched.
        skip: Identities (``id``) of modules and callbacks that are left out, such as the pruned
            networks.
    """
    seen = {id(trainer), id(pl_module), *skip}
    inside = {
        id(tensor)
        for module in pl_module.modules()
        if id(module) in skip
        for _, tensor in _named(module)
    }
    for name, tensor in _named(pl_module):
        if id(tensor) not in inside:
            yield name, tensor
    for key, value in vars(pl_module).items():
        if key not in ("_modules", "_parameters", "_buffers", "_trainer", "_fabric"):
            yield from _within(value, key, seen, 2)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # the trainer's connectors set it
        if (
            not isinstance(callback, (WeightAveraging, StochasticWeightAveraging))
            and id(callback) not in skip
        ):
            for key, value in vars(callback).items():
                yield from _within(value, f"{type(callback).__name__}.{key}", seen, 2)


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _within(value: Any, label: str, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a module, a container or an object's attributes."""
    if isinstance(value, Tensor):
        yield label, value
        return
    if id(value) in seen or isinstance(value, (str, bytes, int, float, type(None), type, Trainer)):
        return
    if isinstance(value, nn.Module):
        seen.add(id(value))
        yield from ((f"{label}.{name}", tensor) for name, tensor in _named(value))
    elif depth and isinstance(value, dict):
        for key, part in list(value.items()):
            yield from _within(part, f"{label}.{key}", seen, depth - 1)
    elif depth and isinstance(value, (list, tuple)) and len(value) <= 1000:
        for index, part in enumerate(value):
            yield from _within(part, f"{label}.{index}", seen, depth - 1)
    elif (
        depth
        and hasattr(value, "__dict__")
        and type(value).__module__.partition(".")[0] not in ("torch", "pytorch_lightning")
    ):
        seen.add(id(value))
        for key, part in list(vars(value).items()):
            yield from _within(part, f"{label}.{key}", seen, depth - 1)
