"""Spectra: rules for complex numbers in a network of real weights.

The flow through a complex value is a real number, its magnitude. A Fourier transform multiplies by
numbers of magnitude one, so each of its outputs is the sum of its inputs times the norm of the
transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from synflow_pl.flow.builder import Builder, Rule
from synflow_pl.graph.trace import Operation

__all__ = ["SPECTRA"]


def _transform(builder: Builder, operation: Operation) -> None:
    given, output = operation.bound(), operation.outputs[0]
    assert output is not None
    dims, norm = list(given["dim"]), given["normalization"]
    shape, signal = builder.tensor(output).shape, builder.tensor(given["self"]).shape
    # The real tensor has the number of transformed entries: half of the spectrum of a real signal
    # is redundant and left out.
    size = prod((shape if operation.name == "_fft_c2r" else signal)[dim] for dim in dims)
    scale = (1.0, size**-0.5, 1.0 / size)[norm]
    factor = torch.full((), scale, dtype=builder.tensor(output).dtype.to_real())
    if operation.name == "_fft_c2r":
        # In half a spectrum each entry counts twice, except for the first and, for even sizes, the
        # last.
        last = dims[-1] % len(signal)
        twice = torch.full((signal[last],), 2.0)
        twice[0] = 1
        if shape[last] % 2 == 0:
            twice[-1] = 1
        factor = factor * twice.reshape(-1, *[1] * (len(signal) - last - 1))
    value = builder.constant(factor.to(builder.tensor(output).device))
    builder.add_node(operation, _summed, builder.resolve(given["self"]), value, dims, list(shape))


def _summed(signal: Tensor, factor: Tensor, dims: list[int], shape: Sequence[int]) -> Tensor:
    return (signal * factor).sum(dims, keepdim=True).expand(shape)


def _from_parts(builder: Builder, operation: Operation) -> None:
    """Translate ``complex(real, imaginary)`` and ``polar(magnitude, angle)``."""
    left, right = operation.args[:2]
    if operation.name == "complex" and builder.carries(left) and builder.carries(right):
        return builder.add_node(operation, torch.add, builder.resolve(left), builder.resolve(right))
    builder.add_identity(operation, left if builder.carries(left) else right)


def _from_pairs(builder: Builder, operation: Operation) -> None:
    builder.add_node(operation, _pair_sum, builder.resolve(operation.args[0]))


def _pair_sum(signal: Tensor) -> Tensor:
    return signal.sum(-1)


def _to_pairs(builder: Builder, operation: Operation) -> None:
    builder.add_node(operation, _pair, builder.resolve(operation.args[0]))


def _pair(signal: Tensor) -> Tensor:
    return torch.stack((signal, signal), -1)


def _strided(builder: Builder, operation: Operation) -> None:
    """Translate ``as_strided``, as in the frames of a spectrogram, to an index into the tensor.

    The traced tensor may have another memory layout than the tensor in the linear network.
    """
    signal, *where = operation.args
    recorded = builder.tensor(signal)
    memory = torch.empty_strided(
        recorded.shape, recorded.stride(), dtype=torch.int64, device=recorded.device
    )
    memory.copy_(torch.arange(recorded.numel(), device=recorded.device).view(recorded.shape))
    size, stride, offset = [*where, None][:3] if len(where) < 3 else where
    places = torch.as_strided(
        memory, size, stride, (offset or recorded.storage_offset()) - recorded.storage_offset()
    )
    builder.add_node(operation, _picked, builder.resolve(signal), places.clone())


def _picked(signal: Tensor, places: Tensor) -> Tensor:
    return signal.reshape(-1)[places]


SPECTRA: dict[str, Rule] = {
    **dict.fromkeys(("_fft_r2c", "_fft_c2c", "_fft_c2r"), _transform),
    **dict.fromkeys(("complex", "polar"), _from_parts),
    "view_as_complex": _from_pairs,
    "view_as_real": _to_pairs,
    "as_strided": _strided,
}
