"""Formats: safetensors, ONNX and torch.export, one writer and one reader each.

A safetensors file holds tensors alone, so the network that they belong to is built again by its
class and cut to their sizes. ONNX and torch.export hold what is computed as well. Each has the
:class:`~synflow_pl.export.metadata.Metadata` in it.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import zipfile
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synflow_pl import networks
from synflow_pl.compaction import resize
from synflow_pl.export import checksums
from synflow_pl.export.metadata import KEY, Metadata

__all__ = ["FORMATS", "Exported", "is_ours", "load_exported", "short"]

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """A network out of a file: called with images (N, C, H, W), float32 and normalised, it gives
    logits (N, num_classes).

    Raises:
        ValueError: when called with images of another shape or dtype.
    """

    facts: Metadata
    run: Run

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        self.facts.check(images)
        return self.run(images)


def load_exported(path: Path, *, trust: bool = False, network: nn.Module | None = None) -> Exported:
    """Read an exported file onto the CPU. A ``.pt2`` of a stranger's is as dangerous as a program
    of theirs; the others hold no code.

    Args:
        path: of the file.
        trust: read it even if its format can hold code.
        network: what a safetensors file holds the weights of, or a larger one; left as it is. It is
            needed for networks that are not of :mod:`synflow_pl.networks`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or not what the card beside it describes, or something else,
            or does not do what it says, or can hold code and is not trusted.
        ImportError: without onnxruntime, for ONNX.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {str(path)!r}; expected one that `synflow_pl export` wrote"
        )
    if path.suffix.removeprefix(".") not in FORMATS:
        raise ValueError(f"{str(path)!r} is not one of .{', .'.join(FORMATS)}")
    if path.suffix == ".pt2" and not trust:
        raise ValueError(
            f"{str(path)!r} can run code when it is read; say that you trust it (--trust), or take .onnx or .safetensors"
        )
    checksums.check(path)
    exported = (
        _read_safetensors(path, network)
        if path.suffix == ".safetensors"
        else _READERS[path.suffix](path)
    )
    facts = exported.facts
    try:
        made = exported(torch.zeros(2, *facts.input_shape))
    except Exception as error:  # onnxruntime's own errors share no other class
        raise ValueError(
            f"{str(path)!r} does not run on the images that it says it is for: {short(error)}"
        ) from error
    if tuple(made.shape) != (2, facts.num_classes):
        raise ValueError(
            f"{str(path)!r} gives {tuple(made.shape)} for two images, and says that it gives (2, {facts.num_classes})"
        )
    if not made.isfinite().all():
        raise ValueError(
            f"{str(path)!r} gives {float(made.sum())} for black images; its weights are damaged or its training diverged"
        )
    return exported


# -- safetensors


def _write_safetensors(network: nn.Module, facts: Metadata, path: Path, example: Tensor) -> None:
    from safetensors.torch import save_file

    persistent = network.state_dict().keys()
    named = (*network.named_parameters(), *network.named_buffers())
    tensors = {name: tensor.detach().contiguous() for name, tensor in named if name in persistent}
    save_file(tensors, path, metadata={KEY: facts.json()})


def _read_safetensors(path: Path, network: nn.Module | None) -> Exported:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = Metadata.read((file.metadata() or {}).get(KEY), str(path))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as safetensors; it is damaged or something else: {error}"
        ) from error
    network = _build(facts, path) if network is None else copy.deepcopy(network)
    own = {
        name
        for name, _ in (*network.named_parameters(), *network.named_buffers())
        if name in network.state_dict()
    }
    if missing := own - tensors.keys():
        raise ValueError(f"{str(path)!r} lacks {min(missing)}, which {facts.network} has")
    try:
        network = resize(network, tensors).eval()
    except ValueError as error:
        raise ValueError(f"{str(path)!r} does not fit {facts.network}: {error}") from error
    return Exported(facts, network)


def is_ours(facts: Metadata) -> bool:
    """Whether the network can be built by its name."""
    room, _, name = facts.network.rpartition(".")
    return room == networks.__name__ and name in networks.__all__


def _build(facts: Metadata, path: Path) -> nn.Module:
    """The network that the file names: one of ours, since a name in a stranger's file shall not
    decide what is imported.
    """
    name = facts.network.rpartition(".")[2]
    if not is_ours(facts):
        raise ValueError(
            f"{str(path)!r} holds the weights of {facts.network}, which is not of synflow_pl.networks; build it yourself and call"
            " synflow_pl.export.load_exported(path, network=network), or predict from ONNX or .pt2"
        )
    try:
        return getattr(networks, name)(
            **{key: _argument(value) for key, value in facts.arguments.items()}
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} names {facts.network}, which cannot be built as it says: {error}"
        ) from error


def _argument(value: Any) -> Any:
    """What an argument stands for: the name of a class of torch.nn for that class, anything else
    for itself.
    """
    return (
        getattr(nn, value.removeprefix("torch.nn."))
        if isinstance(value, str) and value.startswith("torch.nn.")
        else value
    )


# -- ONNX


def _write_onnx(network: nn.Module, facts: Metadata, path: Path, example: Tensor) -> None:
    _need("onnx", "onnxscript", "onnxruntime")
    with _quiet("torch.onnx", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir"):
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=_batch(network),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[KEY] = facts.json()
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
    facts = Metadata.read(session.get_modelmeta().custom_metadata_map.get(KEY), str(path))
    return Exported(
        facts,
        lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]),
    )


# -- torch.export


def _write_pt2(network: nn.Module, facts: Metadata, path: Path, example: Tensor) -> None:
    with _quiet("torch.fx.experimental.symbolic_shapes"):
        program = torch.export.export(network, (example,), dynamic_shapes=_batch(network))
    with open(path, "wb") as file:
        torch.export.save(program, file, extra_files={KEY: facts.json()})


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
            f"{str(path)!r} cannot be read as .pt2 that `synflow_pl export` wrote; it is damaged or something else"
        )
    extra = {KEY: ""}
    try:
        with _quiet("torch.export"), open(path, "rb") as file:
            program = torch.export.load(file, extra_files=extra)
    except Exception as error:  # whatever unpickling and schema checks may raise
        raise ValueError(
            f"{str(path)!r} cannot be read as .pt2; it is damaged or something else: {short(error)}"
        ) from error
    return Exported(Metadata.read(extra[KEY], str(path)), program.module())


Writer = Callable[[nn.Module, Metadata, Path, Tensor], None]
FORMATS: dict[str, Writer] = {
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
    "pt2": _write_pt2,
}
"""By name, which is also the file's ending, what writes (network, facts, path, example images)."""
_READERS: dict[str, Callable[[Path], Exported]] = {".onnx": _read_onnx, ".pt2": _read_pt2}


def _batch(network: nn.Module) -> dict[str, Any]:
    """Any number of images; whatever the forward's argument is called."""
    (name, *_) = inspect.signature(network.forward).parameters
    return {name: {0: torch.export.Dim("batch")}}


def _need(*packages: str) -> None:
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise ImportError(
                f"ONNX needs the package {package}; pip install synflow_pl[export]"
            ) from error


def short(error: BaseException) -> str:
    """The first line of what is at the bottom of it."""
    return str(error.__cause__ or error).partition("\n")[0]


@contextmanager
def _quiet(*loggers: str) -> Any:
    """Without what these loggers say, nor what is printed to standard error (torch prints whole
    graphs): what is raised says it.
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
