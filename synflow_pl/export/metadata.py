"""Metadata of an exported network: what is needed besides its weights to run it on images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["KEY", "Metadata"]

KEY = "synflow_pl"
"""Key under which a file contains the metadata as JSON."""


@dataclass(frozen=True)
class Metadata:
    """Description of an exported network, which every exported file contains.

    Attributes:
        input_shape: Shape (C, H, W) of an image.
        num_classes: Number of logits.
        mean: Mean of each channel, subtracted from pixels in [0, 1].
        std: Standard deviation of each channel, by which pixels are then divided.
        network: Class path of the network.
        arguments: Arguments of the class.
        properties: Further properties for the model card, by name: density, accuracy, pruner.

    Example:
        >>> from synflow_pl.export import Metadata
        >>> metadata = Metadata((1, 28, 28), 10, (0.13,), (0.31,), "synflow_pl.networks.FC")
        >>> Metadata.read(metadata.json(), "model.onnx") == metadata
        True
    """

    input_shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    network: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    properties: Mapping[str, Any] = field(default_factory=dict)

    def json(self) -> str:
        """Return the metadata as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str | None, path: str) -> Metadata:
        """Return the metadata in JSON written by :meth:`json`.

        Args:
            text: JSON, or ``None`` if the file contains none.
            path: Path of the file, for error messages.

        Raises:
            ValueError: If the text is missing or is not valid metadata.
        """
        if not text:
            raise ValueError(
                f"{path!r} has no description of its images; expected a file that"
                " `synflow_pl export` wrote"
            )
        try:
            content = json.loads(text)
            for name in ("input_shape", "mean", "std"):
                content[name] = tuple(content[name])
            metadata = cls(**content)
            metadata._validate()
            return metadata
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path!r} has a description that cannot be read ({error}); export it anew"
            ) from error

    def _validate(self) -> None:
        numbers = (*self.mean, *self.std)
        for name, is_valid in {
            "input_shape": len(self.input_shape) == 3
            and all(isinstance(size, int) and size > 0 for size in self.input_shape),
            "num_classes": isinstance(self.num_classes, int) and self.num_classes > 0,
            "mean": all(isinstance(number, (int, float)) for number in numbers)
            and len(self.mean) == self.input_shape[0],
            "std": len(self.std) == self.input_shape[0] and min(self.std) > 0,
            "network": isinstance(self.network, str),
            "arguments": isinstance(self.arguments, Mapping),
            "properties": isinstance(self.properties, Mapping),
        }.items():
            if not is_valid:
                raise ValueError(f"{name}: {getattr(self, name)!r}")

    def check(self, images: Tensor) -> None:
        """Check shape and dtype of a batch of images.

        Args:
            images: Batch of images.

        Raises:
            ValueError: If the network cannot read images of this shape or dtype.
        """
        if (
            images.dtype != torch.float32
            or images.dim() != 4
            or tuple(images.shape[1:]) != self.input_shape
        ):
            c, h, w = self.input_shape
            raise ValueError(
                f"images: {tuple(images.shape)} of {images.dtype}, expected (N, {c}, {h}, {w}) of"
                f" torch.float32, normalised with mean {self.mean} and std {self.std}"
            )
