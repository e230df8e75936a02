"""Networks whose weights act in contractions and belong to no class of known layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from torchvision.ops import DeformConv2d


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / shape[0] ** 0.5)


class InputsFirst(nn.Module):
    """Linear layer whose matrix has the inputs in the first dimension, as in GPT-2's code."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = parameter(inputs, outputs), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], self.weight.shape[1])


class Functional(nn.Module):
    """Linear layer of another library, with its own class."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = parameter(outputs, inputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = parameter(6, 3, 4), parameter(3, 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.einsum("btd,dhk->bhtk", x, self.project).relu()
        return torch.einsum("bhtk,hko->bto", heads, self.out)


class Experts(nn.Module):
    """Mixture of experts with stacked weights."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.up, self.down = nn.Linear(6, 3), parameter(3, 6, 8), parameter(3, 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        hidden = torch.bmm(x.expand(3, -1, -1), self.up).relu()
        return torch.einsum("ne,eno->no", shares, torch.bmm(hidden, self.down))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 5), nn.Linear(6, 4)
        self.meet, self.out = nn.Bilinear(5, 4, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.out(self.meet(self.left(x), self.right(x)).relu())
        return hidden


class Deformable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Conv2d(3, 18, 3, padding=1)
        self.deform, self.head = DeformConv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.deform(x, self.offset(x)).relu()
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


class FunctionalConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.head = parameter(6, 3, 3, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(functional.conv2d(x, self.kernel).relu().mean((2, 3)))
        return logits


class Graph(nn.Module):
    """Graph convolution with a layer of another library's class and a fixed adjacency."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Functional(6, 8), Functional(8, 3)
        self.register_buffer("adjacency", torch.rand(5, 5).softmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = (self.adjacency @ self.first(x)).relu()
        return self.adjacency @ self.second(hidden)


class Recurrent(nn.Module):
    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.layers = kind(6, 5, batch_first=True, **options)
        outputs = options.get("proj_size", 0) or 5
        self.head = nn.Linear(outputs * (2 if options.get("bidirectional") else 1), 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x)[0].mean(1))
        return logits


class Cells(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.cell, self.head = kind(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        logits: Tensor = self.head(state[0] if isinstance(state, tuple) else state)
        return logits


def wrapped(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)),
        wrap(nn.Conv1d(1, 6, 3)),
        nn.ReLU(),
        nn.Flatten(),
        wrap(nn.Linear(24, 7)),
        nn.ReLU(),
        nn.Linear(7, 3),
    )


VECTOR, SEQUENCE, IMAGE = (6,), (5, 6), (3, 6, 6)
# By name: the network, the shape of an input, and the names of the acting parameters that belong
# to no class of known layers.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "inputs first": (
        lambda: nn.Sequential(InputsFirst(6, 9), nn.GELU(), InputsFirst(9, 4)),
        SEQUENCE,
        ("0.weight", "2.weight"),
    ),
    "functional": (
        lambda: nn.Sequential(Functional(6, 9), nn.ReLU(), Functional(9, 4)),
        VECTOR,
        ("0.weight", "2.weight"),
    ),
    "einsum": (Einsum, SEQUENCE, ("project", "out")),
    "experts": (Experts, VECTOR, ("up", "down")),
    "bilinear": (Bilinear, VECTOR, ("meet.weight",)),
    "deformable": (Deformable, IMAGE, ("deform.weight",)),
    "functional convolution": (FunctionalConvolution, IMAGE, ("kernel",)),
    "graph": (Graph, SEQUENCE, ("first.weight", "second.weight")),
    **{
        f"{kind.__name__} {index}": (
            lambda kind=kind, options=options: Recurrent(kind, **options),
            SEQUENCE,
            tuple(
                f"layers.weight_{part}_l{layer}{suffix}"
                for layer in range(options.get("num_layers", 1))
                for suffix in ("", "_reverse")[: 1 + options.get("bidirectional", False)]
                for part in ("ih", "hh", *(["hr"] if "proj_size" in options else []))
            ),
        )
        for kind, index, options in (
            (nn.RNN, 0, {}),
            (nn.RNN, 1, {"num_layers": 2, "bidirectional": True, "nonlinearity": "relu"}),
            (nn.GRU, 0, {}),
            (nn.GRU, 1, {"num_layers": 2, "bidirectional": True}),
            (nn.LSTM, 0, {}),
            (nn.LSTM, 1, {"num_layers": 2, "bidirectional": True}),
            (nn.LSTM, 2, {"proj_size": 3}),
        )
    },
    **{
        kind.__name__: (
            lambda kind=kind: Cells(kind),
            SEQUENCE,
            ("cell.weight_ih", "cell.weight_hh"),
        )
        for kind in (nn.RNNCell, nn.GRUCell, nn.LSTMCell)
    },
    "spectral norm": (
        lambda: wrapped(parametrizations.spectral_norm),
        VECTOR,
        ("1.parametrizations.weight.original", "4.parametrizations.weight.original"),
    ),
    "masked": (
        lambda: wrapped(lambda layer: torch_prune.l1_unstructured(layer, "weight", 0.3)),
        VECTOR,
        ("1.weight_orig", "4.weight_orig"),
    ),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape, _ = NETWORKS[name]
    return make().eval(), torch.randn(1, *shape)
