"""Operation: one ATen call of a graph, between numbered values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

__all__ = ["Operation", "Value"]


@dataclass(frozen=True)
class Value:
    """A reference to a tensor of a graph by its number."""

    number: int


@dataclass(frozen=True)
class Operation:
    """One ATen call ``outputs = target(*args, **kwargs)``, with a :class:`Value` for each tensor.

    Attributes:
        target: The ATen operator.
        args: Positional arguments.
        kwargs: Keyword arguments.
        outputs: Outputs; ``None`` for those that are not tensors.
        module: Name of the innermost module that was running, "" for the network itself.
    """

    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value | None, ...]
    module: str = ""

    @property
    def name(self) -> str:
        """Return the name of the operation without namespace and overload, such as ``add``."""
        return self.target._schema.name.split("::")[1].rstrip("_") or self.target._schema.name

    @property
    def reads(self) -> list[Value]:
        """Return the values that the operation reads, in order."""
        leaves = tree_leaves((self.args, self.kwargs), is_leaf=lambda leaf: isinstance(leaf, Value))
        return [leaf for leaf in leaves if isinstance(leaf, Value)]

    def bound(self) -> dict[str, Any]:
        """Return the arguments by their names in the schema of the operation."""
        names = [argument.name for argument in self.target._schema.arguments]
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}
