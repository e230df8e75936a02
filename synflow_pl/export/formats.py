"""Writers and readers of safetensors, ONNX and torch.export files.

A safetensors file contains tensors only, so the reader builds the network by its class and resizes
its layers to the tensors. ONNX and torch.export files contain the computation as well. Each file
contains its :class:`~synflow_pl.export.metadata.Metadata`.
"""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from synflow_pl import networks
from synflow_pl.compaction import resize
from synflow_pl.export import checksums
from synflow_pl.export.metadata import KEY, AnyMetadata, Metadata, read_metadata
from synflow_pl.graph.example_inputs import as_inputs
from synflow_pl.graph.network_copy import duplicate

__all__ = ["FORMATS", "Exported", "is_ours", "load_exported", "short"]

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Exported:
    """A network that was read from a file.

    A network of images is called with normalised images, (N, C, H, W) float32, and returns logits,
    (N, num_classes). Any other one is called with the arguments that its metadata describes.

    Attributes:
        metadata: Metadata of the file.
        run: Function from the arguments to the output.

    Raises:
        ValueError: When called with arguments that the metadata does not describe.
    """

    metadata: AnyMetadata
    run: Run

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.metadata.tensors(*args, **kwargs)
        return self.run(*args, **kwargs)


def load_exported(path: Path, *, trust: bool = False, network: nn.Module | None = None) -> Exported:
    """Read an exported file onto the CPU.

    Reading a ``.pt2`` file can run code, so only read files that you trust. Files of the other
    formats contain no code.

    Args:
        path: Path of the file.
        trust: Whether to read the file even if its format can contain code.
        network: Network whose weights a safetensors file contains, or a larger one; it is not
            changed. It is required for networks outside :mod:`synflow_pl.networks`.

    Returns:
        The network, to be called with images or with the arguments that its metadata describes.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged, has another format, contradicts its metadata or the card
            beside it, or can contain code and is not trusted.
        ImportError: If onnxruntime is not installed and the file is ONNX.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {str(path)!r}; expected one that `synflow_pl export` wrote"
        )
    if path.suffix.removeprefix(".") not in FORMATS:
        raise ValueError(f"{str(path)!r} is not one of .{', .'.join(FORMATS)}")
    if path.suffix == ".pt2" and not trust:
        raise ValueError(
            f"{str(path)!r} can run code when it is read; say that you trust it (--trust), or take"
            " .onnx or .safetensors"
        )
    checksums.check(path)
    exported = (
        _read_safetensors(path, network)
        if path.suffix == ".safetensors"
        else _READERS[path.suffix](path)
    )
    metadata = exported.metadata
    kind = "two black images" if isinstance(metadata, Metadata) else "inputs of zeros"
    positional, keywords = metadata.call_with(metadata.example())
    try:
        output = exported(*positional, **keywords)
    except Exception as error:  # onnxruntime's own errors share no other class
        raise ValueError(
            f"{str(path)!r} does not run on the inputs that it says it is for: {short(error)}"
        ) from error
    if tuple(output.shape) != metadata.expected_output():
        raise ValueError(
            f"{str(path)!r} gives {tuple(output.shape)} for {kind}, and says that it gives"
            f" {metadata.expected_output()}"
        )
    if not output.isfinite().all():
        raise ValueError(
            f"{str(path)!r} gives {float(output.sum())} for {kind}; its weights are damaged"
            " or its training diverged"
        )
    return exported


# -- safetensors


def _write_safetensors(network: nn.Module, metadata: AnyMetadata, path: Path, example: Any) -> None:
    from safetensors.torch import save_file

    persistent = network.state_dict().keys()
    named = (*network.named_parameters(), *network.named_buffers())
    tensors = {name: tensor.detach().contiguous() for name, tensor in named if name in persistent}
    save_file(tensors, path, metadata={KEY: metadata.json()})


def _read_safetensors(path: Path, network: nn.Module | None) -> Exported:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = read_metadata((file.metadata() or {}).get(KEY), str(path))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as safetensors; it is damaged or something else: {error}"
        ) from error
    network = _build(metadata, path) if network is None else duplicate(network)
    own = {
        name
        for name, _ in (*network.named_parameters(), *network.named_buffers())
        if name in network.state_dict()
    }
    if missing := own - tensors.keys():
        raise ValueError(f"{str(path)!r} lacks {min(missing)}, which {metadata.network} has")
    try:
        network = resize(network, tensors).eval()
    except ValueError as error:
        raise ValueError(f"{str(path)!r} does not fit {metadata.network}: {error}") from error
    return Exported(metadata, network)


def is_ours(metadata: AnyMetadata) -> TypeGuard[Metadata]:
    """Return whether the network is one of :mod:`synflow_pl.networks`, described by images."""
    room, _, name = metadata.network.rpartition(".")
    return isinstance(metadata, Metadata) and room == networks.__name__ and name in networks.__all__


def _build(metadata: AnyMetadata, path: Path) -> nn.Module:
    """Build the network that a file names.

    It must be one of :mod:`synflow_pl.networks`, so that a file cannot import arbitrary classes.
    """
    name = metadata.network.rpartition(".")[2]
    if not is_ours(metadata):
        raise ValueError(
            f"{str(path)!r} holds the weights of {metadata.network}, which is not of"
            " synflow_pl.networks; build it yourself and call"
            " synflow_pl.export.load_exported(path, network=network), or predict from ONNX or .pt2"
        )
    try:
        return getattr(networks, name)(
            **{key: _argument(value) for key, value in metadata.arguments.items()}
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} names {metadata.network}, which cannot be built as it says: {error}"
        ) from error


def _argument(value: Any) -> Any:
    """Return the class for the name of a class of torch.nn, and any other argument unchanged."""
    return (
        getattr(nn, value.removeprefix("torch.nn."))
        if isinstance(value, str) and value.startswith("torch.nn.")
        else value
    )


# -- ONNX


def _write_onnx(network: nn.Module, metadata: AnyMetadata, path: Path, example: Any) -> None:
    _need("onnx", "onnxscript", "onnxruntime")
    with _quiet("torch.onnx", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir"):
        program = torch.onnx.export(
            _OfTensors(network, metadata),
            tuple(as_inputs(example)),
            dynamo=True,
            dynamic_shapes=_batch(metadata),
            input_names=metadata.input_names,
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[KEY] = metadata.json()
    program.save(path, external_data=False)


def _read_onnx(path: Path) -> Exported:
    _need("onnxruntime")
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no other class
        raise ValueError(
            f"{str(path)!r} cannot be read as ONNX; it is damaged or something else: {short(error)}"
        ) from error
    metadata = read_metadata(session.get_modelmeta().custom_metadata_map.get(KEY), str(path))

    def run(*args: Any, **kwargs: Any) -> Tensor:
        tensors = zip(metadata.input_names, metadata.tensors(*args, **kwargs), strict=True)
        feed = {name: tensor.numpy() for name, tensor in tensors}
        return torch.from_numpy(session.run(["logits"], feed)[0])

    return Exported(metadata, run)


# -- torch.export


def _write_pt2(network: nn.Module, metadata: AnyMetadata, path: Path, example: Any) -> None:
    with _quiet("torch.fx.experimental.symbolic_shapes"):
        program = torch.export.export(
            _OfTensors(network, metadata),
            tuple(as_inputs(example)),
            dynamic_shapes=_batch(metadata),
        )
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files={KEY: metadata.json()})


def _read_pt2(path: Path) -> Exported:
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None and any(
                name.endswith(f"extra/{KEY}") for name in archive.namelist()
            )
    except zipfile.BadZipFile:
        whole = False
    if not whole:
        raise ValueError(
            f"{str(path)!r} cannot be read as .pt2 that `synflow_pl export` wrote; it is damaged or"
            " something else"
        )
    extra = {KEY: ""}
    try:
        with _quiet("torch.export"), open(path, "rb") as file:
            program = torch.export.load(file, extra_files=extra)
    except Exception as error:  # unpickling may raise any exception
        raise ValueError(
            f"{str(path)!r} cannot be read as .pt2; it is damaged or something else: {short(error)}"
        ) from error
    metadata, module = read_metadata(extra[KEY], str(path)), program.module()
    return Exported(metadata, lambda *args, **kwargs: module(*metadata.tensors(*args, **kwargs)))


Writer = Callable[[nn.Module, AnyMetadata, Path, Any], None]
FORMATS: dict[str, Writer] = {
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
    "pt2": _write_pt2,
}
"""Writers by format, which is also the file's suffix.

Their arguments are network, metadata, path and example inputs.
"""
_READERS: dict[str, Callable[[Path], Exported]] = {".onnx": _read_onnx, ".pt2": _read_pt2}


class _OfTensors(nn.Module):
    """A network that is called with the tensors in its arguments.

    Args:
        network: The network.
        metadata: Description of its arguments.
    """

    def __init__(self, network: nn.Module, metadata: AnyMetadata) -> None:
        super().__init__()
        self.network, self._metadata = network, metadata

    def forward(self, *tensors: Tensor) -> Any:
        positional, keywords = self._metadata.call_with(tensors)
        return self.network(*positional, **keywords)


def _batch(metadata: AnyMetadata) -> Any:
    """Return the dynamic dimensions of the inputs: the batch, where they have one."""
    batch = torch.export.Dim("batch")
    return (tuple({0: batch} if batched else None for batched in metadata.batched),)


def _need(*packages: str) -> None:
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise ImportError(
                f"ONNX needs the package {package}; pip install {' '.join(packages)}"
            ) from error


def short(error: BaseException) -> str:
    """Return the first line of the message of an error's cause, or of the error itself."""
    return str(error.__cause__ or error).partition("\n")[0]


@contextmanager
def _quiet(*loggers: str) -> Any:
    """Suppress messages of loggers and output to standard error inside the context.

    torch logs and prints whole graphs before it raises an exception, which is enough.

    Args:
        loggers: Names of the loggers.
    """
    before = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
