"""The commands compact and export: a run's network, made smaller, as files that others run."""

from __future__ import annotations

import argparse
import csv
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synflow_pl.cli.errors import exit_with_error, import_class
from synflow_pl.cli.main import CLI, _prepare, _quieten
from synflow_pl.cli.options import Options
from synflow_pl.compaction import Compaction
from synflow_pl.diagnosis import diagnose
from synflow_pl.export import FORMATS, Metadata, export, write_card
from synflow_pl.flow import example_of
from synflow_pl.io import check_folder, explain
from synflow_pl.masks import Masks
from synflow_pl.runs import find_run_folder
from synflow_pl.runs.progress import progress
from synflow_pl.training import find_checkpoint, load_weights
from synflow_pl.training.checkpoints import load_masks, read

__all__ = ["compact_command", "export_command"]

_IMAGES = 64
"""Real images that a file is verified on."""


def compact_command(args: list[str]) -> None:
    """Take the units that cannot change the output out of a run's network, and save what is left as
    safetensors.

    Args:
        args: ``--ckpt_path RUN``, ``--output PATH``, and options of ``validate`` for a checkpoint
            that is in no run.
    """
    parser = _parser("compact", compact_command)
    own, rest = parser.parse_known_args(args)
    _write(own, rest, parser.names, ["safetensors"], compacted=True, table=True)


def export_command(args: list[str]) -> None:
    """Write a run's network to safetensors, ONNX and torch.export's .pt2, each verified against the
    network it was.

    Args:
        args: ``--ckpt_path RUN``, ``--format NAME ...``, ``--compact false``, ``--output PATH``,
            and options of ``validate``.
    """
    parser = _parser("export", export_command)
    parser.add_argument(
        "--format",
        nargs="+",
        choices=[*FORMATS],
        default=[*FORMATS],
        help="what to write; by default all",
    )
    parser.add_argument(
        "--compact",
        choices=["true", "false"],
        default="true",
        help="whether units that cannot change the output are left out first",
    )
    own, rest = parser.parse_known_args(args)
    _write(own, rest, parser.names, own.format, compacted=own.compact == "true", table=False)


def _parser(name: str, command: Any) -> Options:
    about = command.__doc__.partition("\n")[0]
    parser = Options(name, usage="%(prog)s --ckpt_path RUN [OPTIONS]", description=about)
    parser.add_argument("--ckpt_path", required=True, help="a run, or a checkpoint of one")
    parser.add_argument(
        "--output",
        default=None,
        help="path of the files without ending; by default RUN/export/model",
    )
    return parser


class _Loaded(CLI):
    """A run's network and data, built and filled, and nothing run."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def _write(
    own: argparse.Namespace,
    rest: Sequence[str],
    names: Sequence[str],
    formats: Sequence[str],
    *,
    compacted: bool,
    table: bool,
) -> None:
    try:
        if own.output is not None:
            _check_place(Path(own.output), formats)
        checkpoint = find_checkpoint(own.ckpt_path)
        if own.output is None:
            _check_place((find_run_folder(checkpoint) or Path(".")) / "export" / "model", formats)
        _quieten()
        cli = _Loaded(
            _prepare(
                ["validate", "--ckpt_path", str(checkpoint), "--trainer.accelerator", "cpu", *rest]
            ),
            names,
        )
        network: nn.Module = load_weights(cli.model.network, checkpoint).eval()
        masks = load_masks(checkpoint)
        if masks is None and table:
            raise ValueError(
                f"{str(checkpoint)!r} was trained dense: it has no masks, so there is nothing to take out; prune first"
            )
        shape = tuple(cli.datamodule.input_shape)
        inputs = example_of(network, shape, None)
        told, small = _told(cli, network, masks, checkpoint), network
        if masks is not None and compacted:
            masks.apply(network)
            compaction = Compaction(network, masks, inputs)
            small = compaction.network.eval()
            told["parameters"] = f"{_size(small):,} of {_size(network):,}"
            if table:
                print(compaction.table())
            else:
                for note in compaction.notes:
                    print(f"Kept: {note}.")
        facts = _facts(cli, told)
        output = (
            Path(own.output) if own.output else (cli.run_folder or Path(".")) / "export" / "model"
        )
        images = _real(cli)
        differences: dict[str, float] = {}
        try:
            for name in formats:
                path = output.with_name(f"{output.name}.{name}")
                differences[name] = export(small, network, facts, path, images)
                print(
                    f"{os.path.relpath(path)}: {path.stat().st_size:,} bytes, within {differences[name]:.1e} of the largest output"
                )
        finally:
            if differences:  # whatever became of the others
                print(
                    f"{os.path.relpath(write_card(output, facts, differences))} says what they are"
                )
    except (ValueError, OSError, ImportError) as error:
        exit_with_error(explain(error), status=1)


def _check_place(output: Path, formats: Sequence[str]) -> None:
    """Refuse before any work what cannot become files.

    Raises:
        ValueError: if the name cannot be that of a file.
        OSError: if the folder cannot be made or written into.
    """
    if output.suffix.removeprefix(".") in FORMATS:
        raise ValueError(
            f"--output: {str(output)!r} ends on {output.suffix}, which is added; leave it out"
        )
    check_folder(output.parent, "--output")
    for file in (output.with_name(f"{output.name}.{name}") for name in (*formats, "md")):
        if file.exists() and not file.is_file():
            raise ValueError(
                f"--output: {str(file)!r} is there and is no file; choose another path"
            )


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _real(cli: CLI) -> Tensor:
    """Images that the network was not tested on, as many as there are up to a number."""
    data = cli.datamodule
    data.prepare_data()
    data.setup("fit")
    loader = data.val_dataloader() or data.train_dataloader()
    found: list[Tensor] = []
    for images, _ in loader:
        found.append(images)
        if sum(map(len, found)) >= _IMAGES:
            break
    return torch.cat(found)[:_IMAGES]


def _facts(cli: CLI, told: dict[str, Any]) -> Metadata:
    model, data = cli.options.model.network, cli.datamodule
    signature = inspect.signature(import_class(model.class_path)).parameters
    arguments = {}
    for key, value in (model.get("init_args") or {}).items():
        value = list(value) if isinstance(value, tuple) else value
        default = signature[key].default if key in signature else None
        # Trained weights are in the file; they need not be downloaded to be replaced.
        if value != (list(default) if isinstance(default, tuple) else default) and key not in (
            "weights",
            "pretrained",
        ):
            arguments[key] = f"torch.nn.{value.__name__}" if isinstance(value, type) else value
    return Metadata(
        tuple(data.input_shape),
        data.num_classes,
        tuple(data.mean),
        tuple(data.std),
        model.class_path,
        arguments,
        told,
    )


def _told(cli: CLI, network: nn.Module, masks: Masks | None, checkpoint: Path) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": cli.run_folder.name if cli.run_folder else type(network).__name__
    }
    told["data"] = type(cli.datamodule).__name__
    if masks is not None:
        found = diagnose(network, masks, input_shape=cli.datamodule.input_shape)
        told["density"] = f"{found.density:.6g} ({found.kept:,} of {found.total:,} weights)"
        told["effective density"] = f"{found.effective_density:.6g}"
    if (accuracy := _tested(cli.run_folder, checkpoint)) is not None:
        told["test/accuracy"] = f"{accuracy:.2%}"
    if (accuracy := _last(cli.run_folder, "val/accuracy")) is not None:
        told["val/accuracy, the last in the run's metrics.csv"] = f"{accuracy:.2%}"
    told["torch"] = str(torch.__version__)
    return told


def _tested(run: Path | None, checkpoint: Path) -> float | None:
    """Return the accuracy that a test of this checkpoint had; in runs of older versions, that of
    the last test.
    """
    if run is None or not (run / "metrics.csv").is_file():
        return None
    told = progress(run)
    content = read(checkpoint) if told.tests else None
    return (
        told.tests.get(int(content.get("global_step", -1)))
        if isinstance(content, Mapping)
        else told.final
    )


def _last(run: Path | None, metric: str) -> float | None:
    """The last value of a metric that the run's metrics.csv holds."""
    if run is None or not (run / "metrics.csv").is_file():
        return None
    with open(run / "metrics.csv", newline="") as file:
        values = [row[metric] for row in csv.DictReader(file) if row.get(metric)]
    return float(values[-1]) if values else None
