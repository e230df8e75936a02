"""Masks of a network's weights.

A pruned network is an ordinary network whose pruned weights are exact zeros. The masks are stored
separately from the network: one bool tensor per prunable parameter, under the parameter's name,
True where the weight is kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from synflow_pl.io import atomic_write
from synflow_pl.optimizer_hook import Hold

__all__ = ["Masks"]


class Masks(Mapping[str, Tensor]):
    """A mapping from parameter name to bool mask, True where the weight is kept.

    Args:
        masks: Bool masks in the shapes of the parameters, by name. They are not copied.
        followers: Names of the masks of biases, gains and shifts, which follow the units of a
            layer. These parameters are held at zero like weights, but ``kept``, ``total`` and
            ``density`` count weights only.

    Raises:
        ValueError: If a mask is not bool, a follower has no mask, or no weight is masked.

    Example:
        >>> masks = Masks({"weight": torch.tensor([[True, False, False, True]])})
        >>> masks.kept, masks.total, masks.density
        (2, 4, 0.5)
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
        return (
            f"Masks({len(self.weights)} parameters, {self.kept} of {self.total} weights kept,"
            f" density {self.density:.6g})"
        )

    @property
    def weights(self) -> list[str]:
        """Names of the masks of weights, without the followers."""
        return [name for name in self._masks if name not in self.followers]

    @property
    def kept(self) -> int:
        """Number of weights kept."""
        return sum(int(torch.count_nonzero(self._masks[name])) for name in self.weights)

    @property
    def total(self) -> int:
        """Number of weights, kept and pruned."""
        return sum(self._masks[name].numel() for name in self.weights)

    @property
    def density(self) -> float:
        """Fraction of prunable weights kept, in (0, 1].

        It is counted on the masks, since a kept weight may be zero.
        """
        return self.kept / self.total

    def parameters(self, network: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """Return pairs of the masked parameters of a network and their masks.

        Args:
            network: Network that the masks belong to.

        Raises:
            ValueError: If the network has no parameter of a mask's name, or one of another shape.
        """
        present = self._parameters_of(network)
        for name, mask in self._masks.items():
            if name not in present:
                near = get_close_matches(name, present, n=1, cutoff=0)
                raise ValueError(
                    f"the masks name {name!r}, which {type(network).__name__} does not have"
                    f" (nearest: {near[0] if near else None!r}); were they made for another"
                    " network?"
                )
            if present[name].shape != mask.shape:
                raise ValueError(
                    f"the mask of {name!r} has shape {tuple(mask.shape)}, the parameter"
                    f" {tuple(present[name].shape)}; were they made for another width?"
                )
        return [(present[name], mask) for name, mask in self._masks.items()]

    def _parameters_of(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """Return all parameters of a network by the names that masks have."""
        return dict(network.named_parameters(remove_duplicate=False))

    def apply(self, network: nn.Module) -> None:
        """Set every pruned weight of a network to zero, in place.

        Args:
            network: Network that the masks belong to.

        Raises:
            ValueError: If the masks do not fit, as in :meth:`parameters`; nothing is changed then.

        Example:
            >>> layer = nn.Linear(2, 1, bias=False)
            >>> Masks({"weight": torch.tensor([[True, False]])}).apply(layer)
            >>> int(layer.weight.count_nonzero())
            1
        """
        pairs = self.parameters(network)
        with torch.no_grad():
            for parameter, mask in pairs:
                parameter.masked_fill_(~mask.to(parameter.device), 0)

    def hold(self, network: nn.Module, optimizer: Optimizer) -> Hold:
        """Keep pruned weights at zero: each ``optimizer.step()`` ends by zeroing them.

        No state of the optimiser (momentum, weight decay, second moments) can bring a pruned
        weight back. Call :meth:`Hold.mask_gradients` before clipping gradients by norm, so that
        only kept weights count.

        Args:
            network: Network that the masks belong to.
            optimizer: Optimiser of its parameters.

        Returns:
            Handle whose ``remove()`` ends the zeroing.

        Raises:
            ValueError: If the masks do not fit, as in :meth:`parameters`.
        """
        return Hold(self.parameters(network), optimizer)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the masks to a safetensors file, atomically.

        Args:
            path: Path of the file; missing folders are created.

        Raises:
            OSError: If the folder cannot be written.
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
        """Read masks that :meth:`save` wrote, onto the CPU.

        Loading cannot execute code, since safetensors files contain tensors and strings only.

        Args:
            path: Path of the file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a file of masks.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(
                f"no masks at {str(path)!r}; expected a file that Masks.save wrote"
                " (a run's masks.safetensors)"
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
        """Return the masks as tensors and strings.

        A checkpoint that contains them can be loaded with ``weights_only=True``.
        """
        return {
            "masks": {name: mask.cpu() for name, mask in self._masks.items()},
            "followers": sorted(self.followers),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, object]) -> Masks:
        """Return the masks that :meth:`state_dict` described.

        Args:
            state: Result of :meth:`state_dict`.
        """
        return cls(state["masks"], state["followers"])  # type: ignore[arg-type]
