"""Metadata of an exported network: what is needed besides its weights to run it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from synflow_pl.export.tensor_metadata import TensorMetadata

__all__ = ["KEY", "AnyMetadata", "Metadata", "read_metadata"]

KEY = "synflow_pl"
"""Key under which a file contains the metadata as JSON."""


@dataclass(frozen=True)
class Metadata:
    """Description of an exported network of images, which every exported file contains.

    :class:`~synflow_pl.export.TensorMetadata` describes networks of other inputs.

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
        >>> [tuple(images.shape) for images in metadata.example()]
        [(2, 1, 28, 28)]
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
    def from_content(cls, content: Mapping[str, Any]) -> Metadata:
        """Return the metadata with the content of JSON written by :meth:`json`.

        Raises:
            ValueError: If the content is not valid metadata.
            KeyError: If an entry is missing.
            TypeError: If an entry has another type.
        """
        shapes = {name: tuple(content[name]) for name in ("input_shape", "mean", "std")}
        metadata = cls(**{**content, **shapes})
        metadata._validate()
        return metadata

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

    @property
    def input_names(self) -> list[str]:
        """Return the names of the inputs in a file."""
        return ["images"]

    @property
    def batched(self) -> list[bool]:
        """Return for each input whether its first dimension is the batch."""
        return [True]

    def tensors(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs for a batch of images after checking shape and dtype.

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
        return (images,)

    def call_with(self, tensors: Iterable[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of ``forward()``, by position and by keyword."""
        return tuple(tensors), {}

    def example(self) -> tuple[Tensor, ...]:
        """Return two black images, as :meth:`tensors` does."""
        return (torch.zeros(2, *self.input_shape),)

    def expected_output(self) -> tuple[int, ...]:
        """Return the shape of the logits of :meth:`example`."""
        return 2, self.num_classes

    def card(self) -> list[str]:
        """Return the lines of the model card about inputs and output."""
        c, h, w = self.input_shape
        return [
            f"- input `images`: float32 (N, {c}, {h}, {w}), pixels in [0, 1],"
            f" less {list(self.mean)}, over {list(self.std)}",
            f"- output `logits`: float32 (N, {self.num_classes})",
        ]


AnyMetadata = Metadata | TensorMetadata


def read_metadata(text: str | None, path: str) -> AnyMetadata:
    """Return the metadata in JSON that an exported file contains.

    Args:
        text: JSON, or ``None`` if the file contains none.
        path: Path of the file, for error messages.

    Raises:
        ValueError: If the text is missing or is not valid metadata.
    """
    if not text:
        raise ValueError(
            f"{path!r} has no description of its inputs; expected a file that"
            " `synflow_pl export` wrote"
        )
    try:
        content = json.loads(text)
        kind = TensorMetadata if "inputs" in content else Metadata
        return kind.from_content(content)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path!r} has a description that cannot be read ({error}); export it anew"
        ) from error
