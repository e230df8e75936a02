"""Masks: which weights of a network live, and what keeps the others at zero.

A pruned network is an ordinary network whose removed weights are exact zeros. The masks that say
which ones they are live beside it, one bool tensor per prunable parameter under the parameter's own
name, True where the weight lives.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from synflow_pl.io import atomic_write

__all__ = ["Masks", "prunable"]

_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
# So many classes are named where none of them has prunable weights.
_MOST_KINDS = 4


def prunable(network: nn.Module, exclude: Iterable[str] = ()) -> dict[str, nn.Parameter]:
    """The parameters that compete: weights of linear, (transposed) convolution and attention
    projection layers.

    Never embeddings (nor a weight shared with one), normalisation gains, biases, tokens or tables,
    nor weights that are not real floating-point numbers (complex or quantised ones).

    Args:
        network: any module.
        exclude: shell-style patterns of parameter names that stay dense; a dense classifier is
            ``["fc.*"]``.

    Returns:
        Parameter name to parameter, in the order of ``network.named_parameters()``; a shared weight
        appears once.

    Raises:
        ValueError: if a pattern matches no prunable parameter, or nothing prunable is left.
    """
    owned: set[int] = set()
    embedded: set[int] = set()
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            owned |= _own(module, ("weight",))
        elif isinstance(module, nn.MultiheadAttention):
            owned |= _own(module, _ATTENTION_WEIGHTS)
        elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            embedded |= _own(module, ("weight",))
    competing = {name: p for name, p in network.named_parameters() if id(p) in owned - embedded}
    found = {name: p for name, p in competing.items() if p.is_floating_point()}
    if competing and not found:
        name, other = next(iter(competing.items()))
        raise ValueError(
            f"{type(network).__name__} has no real floating-point weight to prune: {name!r} holds"
            f" {'complex numbers' if other.is_complex() else 'whole numbers'} ({str(other.dtype).removeprefix('torch.')})"
        )
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            near = get_close_matches(pattern, found, n=1, cutoff=0)
            raise ValueError(
                f"exclude: {pattern!r} matches no prunable parameter; the nearest is {near[0] if near else None!r}"
            )
    found = {
        name: p
        for name, p in found.items()
        if not any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not found:
        raise ValueError(
            f"{type(network).__name__} has no prunable weight"
            + (f" left after exclude={patterns}" if patterns else "")
            + "; linear, convolution and attention layers of torch.nn and of classes derived from them have them"
            + ("" if patterns else _elsewhere(network))
        )
    return found


def _own(module: nn.Module, names: Iterable[str]) -> set[int]:
    """Return the ids of a module's parameters of these names.

    A weight that is computed (a parametrisation, `spectral_norm`) is not among them, nor read: in
    train mode reading it would change the buffers that it is computed with.
    """
    return {
        id(parameter) for name in names if (parameter := module._parameters.get(name)) is not None
    }


def _elsewhere(network: nn.Module) -> str:
    """Return the classes of the modules that hold a network's parameters, the largest first, as the
    end of a sentence.
    """
    sizes: Counter[str] = Counter()
    for module in network.modules():
        sizes[type(module).__name__] += sum(
            parameter.numel() for parameter in module.parameters(recurse=False)
        )
    listed = [f"{kind} ({size:,})" for kind, size in sizes.most_common(_MOST_KINDS) if size]
    return f", and its parameters are in {', '.join(listed)}" if listed else ""


class Masks(Mapping[str, Tensor]):
    """A mapping from parameter name to bool tensor in the parameter's shape, True where the weight
    lives.

    Args:
        masks: one bool tensor per parameter. Kept as they are, not copied.
        followers: names among them that follow a unit (biases, normalisation gains): held at zero
            like the others, but ``kept``, ``total`` and ``density`` count weights only.

    Raises:
        ValueError: if a mask is not bool, a follower has no mask, or no weight is masked.
    """

    def __init__(self, masks: Mapping[str, Tensor], followers: Iterable[str] = ()) -> None:
        self._masks = dict(masks)
        self.followers = frozenset(followers)
        for name, mask in self._masks.items():
            if mask.dtype != torch.bool:
                raise ValueError(f"the mask of {name!r} is {mask.dtype}, expected torch.bool")
        if missing := self.followers - self._masks.keys():
            raise ValueError(f"followers without a mask: {sorted(missing)}")
        if not self.weights:
            raise ValueError(
                "no weight is masked: masks need at least one parameter that is not a follower"
            )

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self.weights)} parameters, {self.kept} of {self.total} weights live, density {self.density:.6g})"

    @property
    def weights(self) -> list[str]:
        """Names of the masks that count: all but the followers."""
        return [name for name in self._masks if name not in self.followers]

    @property
    def kept(self) -> int:
        """Weights that live."""
        return sum(int(torch.count_nonzero(self._masks[name])) for name in self.weights)

    @property
    def total(self) -> int:
        """Weights, living and removed."""
        return sum(self._masks[name].numel() for name in self.weights)

    @property
    def density(self) -> float:
        """Fraction of prunable weights kept, in (0, 1]; counted on masks, since a living weight may
        well be zero.
        """
        return self.kept / self.total

    def parameters(self, network: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """Each masked parameter of ``network`` beside its mask.

        Raises:
            ValueError: if a name is missing in the network or a shape differs.
        """
        present = dict(network.named_parameters(remove_duplicate=False))
        for name, mask in self._masks.items():
            if name not in present:
                near = get_close_matches(name, present, n=1, cutoff=0)
                raise ValueError(
                    f"the masks name {name!r}, which {type(network).__name__} does not have"
                    f" (nearest: {near[0] if near else None!r}); were they made for another network?"
                )
            if present[name].shape != mask.shape:
                raise ValueError(
                    f"the mask of {name!r} has shape {tuple(mask.shape)}, the parameter {tuple(present[name].shape)};"
                    " were they made for another width?"
                )
        return [(present[name], mask) for name, mask in self._masks.items()]

    def apply(self, network: nn.Module) -> None:
        """Zero every removed weight of ``network``, in place.

        Raises:
            ValueError: as :meth:`parameters`; nothing is changed then.
        """
        pairs = self.parameters(network)
        with torch.no_grad():
            for parameter, mask in pairs:
                parameter.masked_fill_(~mask.to(parameter.device), 0)

    def hold(self, network: nn.Module, optimizer: Optimizer) -> Hold:
        """Keep the zeros at zero: from now on, each ``optimizer.step()`` ends by zeroing every
        removed weight.

        Whatever the optimiser carries over from step to step (momentum, weight decay, second
        moments), no removed weight comes back. Before clipping gradients by norm, call
        :meth:`Hold.mask_gradients`, so that only living weights count.

        Returns:
            The hold; ``remove()`` ends it.

        Raises:
            ValueError: as :meth:`parameters`.
        """
        return Hold(self.parameters(network), optimizer)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; it appears whole or not at all.

        Raises:
            OSError: if the folder cannot be written.
        """
        from safetensors.torch import save

        tensors = {name: mask.cpu().contiguous() for name, mask in self._masks.items()}
        about = {
            "order": json.dumps(list(tensors)),
            "followers": json.dumps(sorted(self.followers)),
        }
        with atomic_write(path) as file:
            file.write(save(tensors, about))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """Read what :meth:`save` wrote, onto the CPU. Safetensors cannot carry code.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not a file of masks.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(
                f"no masks at {str(path)!r}; expected a file that Masks.save wrote (a run's masks.safetensors)"
            )
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                order = (
                    json.loads(metadata["order"]) if "order" in metadata else sorted(file.keys())
                )
                return cls(
                    {name: file.get_tensor(name) for name in order},
                    json.loads(metadata.get("followers", "[]")),
                )
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{str(path)!r} is not a file of masks: {error}") from error

    def state_dict(self) -> dict[str, object]:
        """Tensors and strings only, so that a checkpoint that holds it loads with
        ``weights_only=True``.
        """
        return {
            "masks": {name: mask.cpu() for name, mask in self._masks.items()},
            "followers": sorted(self.followers),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, object]) -> Masks:
        """The masks that :meth:`state_dict` described."""
        return cls(state["masks"], state["followers"])  # type: ignore[arg-type]


class Hold:
    """Masks held on a network while an optimiser steps; made by :meth:`Masks.hold`."""

    def __init__(self, pairs: list[tuple[nn.Parameter, Tensor]], optimizer: Optimizer) -> None:
        self._parameters = [parameter for parameter, _ in pairs]
        # All bits or none of each weight: taking away bits says +0.0 and survives an infinite
        # update, where multiplying by the mask would leave -0.0 or NaN behind, and costs a quarter
        # of what filling does on a CPU. In the parameter's own memory format, or each step would go
        # through memory in two orders.
        self._bits = [
            torch.empty_like(parameter, dtype=_INTEGER[parameter.element_size()]).copy_(mask).neg_()
            for parameter, mask in pairs
        ]
        self._handle = optimizer.register_step_post_hook(lambda *_: self.zero())

    def zero(self) -> None:
        """Zero every removed weight."""
        _zero(self._parameters, self._bits)

    def mask_gradients(self) -> None:
        """Zero the gradients of removed weights, so that whatever reads across entries (a norm)
        sees living weights only.
        """
        there = [
            (p.grad, bits)
            for p, bits in zip(self._parameters, self._bits, strict=True)
            if p.grad is not None
        ]
        _zero([gradient for gradient, _ in there], [bits for _, bits in there])

    def remove(self) -> None:
        """Let go: the optimiser steps as before."""
        self._handle.remove()


# By the bytes of a number, the integer of the same size.
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def _zero(tensors: Sequence[Tensor], living: list[Tensor]) -> None:
    for tensor, bits in zip(tensors, living, strict=True):
        there = bits.to(tensor.device)
        if tensor.element_size() == bits.element_size():
            tensor.view(bits.dtype).bitwise_and_(there)
        else:  # the network has been taken to another precision since
            tensor.masked_fill_(there == 0, 0)
