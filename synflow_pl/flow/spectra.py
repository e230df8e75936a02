"""Spectra: complex numbers in a network of real weights.

The flow through a complex value is a real number, its magnitude. A Fourier transform multiplies by
numbers of magnitude one, so each of its outputs is the sum of all that it transforms, up to its
norm.
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
    # The real side says how many numbers are transformed: a spectrum of real numbers is cut in
    # half.
    size = prod((shape if operation.name == "_fft_c2r" else signal)[dim] for dim in dims)
    scale = (1.0, size**-0.5, 1.0 / size)[norm]
    factor = torch.full((), scale, dtype=builder.tensor(output).dtype.to_real())
    if operation.name == "_fft_c2r":
        # All but the first number of half a spectrum, and the last of an even one, stand for two.
        last = dims[-1] % len(signal)
        twice = torch.full((signal[last],), 2.0)
        twice[0] = 1
        if shape[last] % 2 == 0:
            twice[-1] = 1
        factor = factor * twice.reshape(-1, *[1] * (len(signal) - last - 1))
    value = builder.constant(factor.to(builder.tensor(output).device))
    builder.step(operation, _summed, builder.resolve(given["self"]), value, dims, list(shape))


def _summed(signal: Tensor, factor: Tensor, dims: list[int], shape: Sequence[int]) -> Tensor:
    return (signal * factor).sum(dims, keepdim=True).expand(shape)


def _from_parts(builder: Builder, operation: Operation) -> None:
    """``complex(real, imaginary)`` and ``polar(magnitude, angle)``."""
    left, right = operation.args[:2]
    if operation.name == "complex" and builder.carries(left) and builder.carries(right):
        return builder.step(operation, torch.add, builder.resolve(left), builder.resolve(right))
    builder.same(operation, left if builder.carries(left) else right)


def _from_pairs(builder: Builder, operation: Operation) -> None:
    builder.step(operation, _pair_sum, builder.resolve(operation.args[0]))


def _pair_sum(signal: Tensor) -> Tensor:
    return signal.sum(-1)


def _to_pairs(builder: Builder, operation: Operation) -> None:
    builder.step(operation, _pair, builder.resolve(operation.args[0]))


def _pair(signal: Tensor) -> Tensor:
    return torch.stack((signal, signal), -1)


def _strided(builder: Builder, operation: Operation) -> None:
    """Entries picked by their place in memory (the frames of a spectrogram): by their place in the
    tensor, in the skeleton.
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
    builder.step(operation, _picked, builder.resolve(signal), places.clone())


def _picked(signal: Tensor, places: Tensor) -> Tensor:
    return signal.reshape(-1)[places]


SPECTRA: dict[str, Rule] = {
    **dict.fromkeys(("_fft_r2c", "_fft_c2c", "_fft_c2r"), _transform),
    **dict.fromkeys(("complex", "polar"), _from_parts),
    "view_as_complex": _from_pairs,
    "view_as_real": _to_pairs,
    "as_strided": _strided,
}
