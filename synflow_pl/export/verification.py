"""Export with verification: a file is only written if it gives the outputs of the network."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synflow_pl.export.formats import FORMATS, Exported, is_ours, load_exported, short
from synflow_pl.export.metadata import AnyMetadata
from synflow_pl.graph.example_inputs import Inputs, as_inputs, call
from synflow_pl.graph.network_copy import duplicate

__all__ = ["export", "verify"]

CLOSE = 1e-4
"""Largest difference attributed to single precision, relative to the largest output.

Other libraries sum in another order, and ONNX folds BatchNorm into convolutions.
"""


def export(
    network: nn.Module, original: nn.Module, metadata: AnyMetadata, path: Path, example_input: Any
) -> float:
    """Write a network to a file in one atomic step after verifying the file.

    Args:
        network: Network to write, compacted or not; it is not changed.
        original: Network with whose outputs the file must agree.
        metadata: Metadata of the network.
        path: Path of the file, with suffix .safetensors, .onnx or .pt2.
        example_input: Normalised images of a data set, (N, C, H, W), N at least 2, or the arguments
            of ``forward()`` that ``metadata`` describes. The file is verified on them and on random
            ones.

    Returns:
        The largest difference over the largest output.

    Raises:
        ValueError: If the network does not return one floating-point tensor or cannot be written in
            this format, the file does not agree with ``original``, or the path has another suffix.
        ImportError: If the format is ONNX and its packages are not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from synflow_pl.export import Metadata, export, load_exported
        >>> from synflow_pl.networks import FC
        >>> network = FC(input_shape=(1, 4, 4), num_classes=3, depth=2)
        >>> metadata = Metadata(
        ...     input_shape=(1, 4, 4),
        ...     num_classes=3,
        ...     mean=(0.5,),
        ...     std=(0.5,),
        ...     network="synflow_pl.networks.FC",
        ...     arguments={"input_shape": [1, 4, 4], "num_classes": 3, "depth": 2},
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.safetensors"
        ...     difference = export(network, network, metadata, path, torch.randn(2, 1, 4, 4))
        ...     load_exported(path)(torch.zeros(5, 1, 4, 4)).shape
        torch.Size([5, 3])
    """
    if path.suffix.removeprefix(".") not in FORMATS:
        raise ValueError(f"{str(path)!r} does not end on one of .{', .'.join(FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    network = duplicate(network).cpu().float().eval()
    original = duplicate(original).cpu().float().eval()
    inputs = as_inputs(example_input)
    inputs = inputs.replaced(
        tensor.cpu().float() if tensor.is_floating_point() else tensor.cpu() for tensor in inputs
    )
    with torch.no_grad():
        logits = call(original, inputs)
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = (
            f"a tensor of {logits.dtype}"
            if isinstance(logits, Tensor)
            else f"a {type(logits).__name__}"
        )
        raise ValueError(
            f"{type(original).__name__}.forward returns {kind}, and a file is verified by one"
            " floating-point tensor of logits; wrap the network in a module that returns it"
        )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder) / path.name
        try:
            FORMATS[path.suffix.removeprefix(".")](network, metadata, unfinished, _random(inputs))
        except ImportError:
            raise
        except Exception as error:  # tracing may raise any exception
            raise ValueError(
                f"{type(original).__name__} cannot be written as {path.suffix}, and no file was"
                f" written: {short(error)}"
            ) from error
        difference = verify(
            load_exported(unfinished, trust=True, network=None if is_ours(metadata) else original),
            original,
            inputs,
        )
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, path)
    return difference


@torch.no_grad()
def verify(exported: Exported, original: nn.Module, example_input: Any) -> float:
    """Compare an exported network with the original on inputs and on as many random ones.

    Args:
        exported: Network that was read from a file.
        original: Network with whose outputs it must agree.
        example_input: Normalised images of a data set, (N, C, H, W), or the arguments of
            ``forward()`` that the metadata describes.

    Returns:
        The largest difference over the largest output.

    Raises:
        ValueError: If the outputs do not agree.
    """
    worst = 0.0
    inputs = as_inputs(example_input)
    for kind, given in (("real", inputs), ("random", _random(inputs))):
        positional, keywords = given.arguments()
        expected, actual = original(*positional, **keywords), exported(*positional, **keywords)
        largest = float(expected.abs().max())
        spread = float((expected - expected.mean(0)).abs().max())
        difference = (
            float((expected - actual).abs().max())
            if expected.shape == actual.shape
            else float("inf")
        )
        # The second condition rejects a constant in place of a network whose output hardly depends
        # on its input.
        if not (
            difference <= CLOSE * largest
            and (difference <= spread / 10 or spread <= CLOSE / 10 * largest)
        ):
            raise ValueError(
                f"what was written gives {difference:.3g} more or less than the network on {kind}"
                f" inputs, whose largest output is {largest:.3g}; no file was written"
            )
        worst = max(worst, difference / largest if largest else 0.0)
    return worst


def _random(inputs: Inputs) -> Inputs:
    """Return inputs of the same structure with normal random numbers in place of others.

    Whole numbers and booleans keep their values, since a network may index with them.
    """
    return inputs.replaced(
        torch.randn_like(tensor) if tensor.is_floating_point() else tensor for tensor in inputs
    )
