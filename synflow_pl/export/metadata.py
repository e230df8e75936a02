"""Facts: what has to be known of a network beside its weights to run it on images; they travel in
every exported file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["KEY", "Metadata"]

KEY = "synflow_pl"
"""Under this name the facts lie in a file, as JSON."""


@dataclass(frozen=True)
class Metadata:
    """What an exported network is.

    Attributes:
        input_shape: (C, H, W).
        num_classes: logits out.
        mean: of each channel, for pixels in [0, 1], that is taken off an image.
        std: what it is divided by then.
        network: class path of the network.
        arguments: what the class is called with.
        told: what a reader may want to know, by name: density, accuracy, pruner.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    network: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)

    def json(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str | None, path: str) -> Metadata:
        """What :meth:`json` wrote.

        Raises:
            ValueError: if it is something else.
        """
        if not text:
            raise ValueError(
                f"{path!r} does not say what its images are like; expected a file that `synflow_pl export` wrote"
            )
        try:
            found = json.loads(text)
            for name in ("input_shape", "mean", "std"):
                found[name] = tuple(found[name])
            facts = cls(**found)
            facts._make_sense()
            return facts
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path!r} describes itself in a way that cannot be read ({error}); export it anew"
            ) from error

    def _make_sense(self) -> None:
        numbers = (*self.mean, *self.std)
        for name, right in {
            "input_shape": len(self.input_shape) == 3
            and all(isinstance(size, int) and size > 0 for size in self.input_shape),
            "num_classes": isinstance(self.num_classes, int) and self.num_classes > 0,
            "mean": all(isinstance(number, (int, float)) for number in numbers)
            and len(self.mean) == self.input_shape[0],
            "std": len(self.std) == self.input_shape[0] and min(self.std) > 0,
            "network": isinstance(self.network, str),
            "arguments": isinstance(self.arguments, Mapping),
            "told": isinstance(self.told, Mapping),
        }.items():
            if not right:
                raise ValueError(f"{name}: {getattr(self, name)!r}")

    def check(self, images: Tensor) -> None:
        """Refuse what the network cannot read.

        Raises:
            ValueError: for another shape or kind of number.
        """
        if (
            images.dtype != torch.float32
            or images.dim() != 4
            or tuple(images.shape[1:]) != self.input_shape
        ):
            c, h, w = self.input_shape
            raise ValueError(
                f"images: {tuple(images.shape)} of {images.dtype}, expected (N, {c}, {h}, {w}) of torch.float32, normalised with"
                f" mean {self.mean} and std {self.std}"
            )
