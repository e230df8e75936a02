"""Verified: no exported file gets its name before it has given what the network gives."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from synflow_pl.export.formats import FORMATS, Exported, is_ours, load_exported, short
from synflow_pl.export.metadata import Metadata

__all__ = ["export", "verify"]

CLOSE = 1e-4
"""Largest difference that is put down to single precision, of the largest output: others sum in
another order, and ONNX folds BatchNorm into its convolution.
"""


def export(
    network: nn.Module, original: nn.Module, facts: Metadata, path: Path, images: Tensor
) -> float:
    """Write a network to a file, which appears whole and verified or not at all.

    Args:
        network: what to write, compacted or not; left as it is.
        original: what it must agree with.
        facts: what travels with it.
        path: ends on .safetensors, .onnx or .pt2.
        images: real ones (N, C, H, W), normalised, N at least 2, to verify it on beside random
            ones.

    Returns:
        The largest difference over the largest output.

    Raises:
        ValueError: if the network returns anything but one floating-point tensor, or cannot be
            written so, or what was written does not agree with ``original``, or the path ends on
            something else.
        ImportError: for ONNX, without the packages that it needs.
    """
    if path.suffix.removeprefix(".") not in FORMATS:
        raise ValueError(f"{str(path)!r} does not end on one of .{', .'.join(FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    network = copy.deepcopy(network).cpu().float().eval()
    original = copy.deepcopy(original).cpu().float().eval()
    images = images.cpu().float()
    with torch.no_grad():
        given = original(images[:2])
    if not isinstance(given, Tensor) or not given.is_floating_point():
        kind = (
            f"a tensor of {given.dtype}"
            if isinstance(given, Tensor)
            else f"a {type(given).__name__}"
        )
        raise ValueError(
            f"{type(original).__name__}.forward returns {kind}, and a file is verified by one floating-point tensor of logits; wrap the"
            " network in a module that returns it"
        )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder) / path.name
        try:
            FORMATS[path.suffix.removeprefix(".")](
                network, facts, unfinished, torch.randn_like(images[:2])
            )
        except ImportError:
            raise
        except Exception as error:  # whatever tracing a network may raise
            raise ValueError(
                f"{type(original).__name__} cannot be written as {path.suffix}, and no file was written: {short(error)}"
            ) from error
        apart = verify(
            load_exported(unfinished, trust=True, network=None if is_ours(facts) else original),
            original,
            images,
        )
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, path)
    return apart


@torch.no_grad()
def verify(exported: Exported, original: nn.Module, images: Tensor) -> float:
    """Run both on these images and on as many random ones.

    Returns:
        The largest difference over the largest output.

    Raises:
        ValueError: if they do not agree.
    """
    worst = 0.0
    for what, batch in (("real", images), ("random", torch.randn_like(images))):
        truth, found = original(batch), exported(batch)
        largest, spread = float(truth.abs().max()), float((truth - truth.mean(0)).abs().max())
        difference = (
            float((truth - found).abs().max()) if truth.shape == found.shape else float("inf")
        )
        # Of a network that hardly minds its input a constant would do, but for the second
        # condition.
        if not (
            difference <= CLOSE * largest
            and (difference <= spread / 10 or spread <= CLOSE / 10 * largest)
        ):
            raise ValueError(
                f"what was written gives {difference:.3g} more or less than the network on {what} images, whose largest output is"
                f" {largest:.3g}; no file was written"
            )
        worst = max(worst, difference / largest if largest else 0.0)
    return worst
