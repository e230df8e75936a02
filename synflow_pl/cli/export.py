"""Run the commands ``compact`` and ``export``: write a run's network to deployable files."""

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

from synflow_pl.cli.command import Command
from synflow_pl.cli.command_line import resolve
from synflow_pl.cli.errors import exit_with_error, import_class
from synflow_pl.cli.log_filters import quieten
from synflow_pl.cli.options import Options
from synflow_pl.cli.run_errors import exit_on_invalid_options
from synflow_pl.cli.session import Session
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
"""Number of real images on which a file is verified."""


def compact_command(args: list[str]) -> None:
    """Remove the units that cannot change the output from a run's network, and save the rest.

    The file is in safetensors format.

    Args:
        args: ``--ckpt_path RUN``, ``--output PATH``, and options of ``validate`` for a checkpoint
            that is not in a run.
    """
    parser = _parser("compact", compact_command)
    own, rest = parser.parse_known_args(args)
    _write(own, rest, parser.names, ["safetensors"], compacted=True, table=True)


def export_command(args: list[str]) -> None:
    """Write a run's network to safetensors, ONNX and torch.export's .pt2, and verify each file.

    A file is verified by comparing its outputs with the network's.

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
            _check_output(Path(own.output), formats)
        checkpoint = find_checkpoint(own.ckpt_path)
        if own.output is None:
            _check_output((find_run_folder(checkpoint) or Path(".")) / "export" / "model", formats)
        session = _session(checkpoint, rest, names)
        network: nn.Module = load_weights(session.model.network, checkpoint).eval()
        masks = load_masks(checkpoint)
        if masks is None and table:
            raise ValueError(
                f"{str(checkpoint)!r} was trained dense: it has no masks, so there is nothing to "
                "take out; prune first"
            )
        shape = session.data_properties.input_shape
        inputs = example_of(network, shape, None)
        entries, small = _card_entries(session, network, masks, checkpoint), network
        if masks is not None and compacted:
            masks.apply(network)
            compaction = Compaction(network, masks, inputs)
            small = compaction.network.eval()
            entries["parameters"] = f"{_size(small):,} of {_size(network):,}"
            if table:
                print(compaction.table())
            else:
                for note in compaction.notes:
                    print(f"Kept: {note}.")
        metadata = _metadata(session, entries)
        output = (
            Path(own.output)
            if own.output
            else (session.run_folder or Path(".")) / "export" / "model"
        )
        images = _real_images(session)
        differences: dict[str, float] = {}
        try:
            for name in formats:
                path = output.with_name(f"{output.name}.{name}")
                differences[name] = export(small, network, metadata, path, images)
                print(
                    f"{os.path.relpath(path)}: {path.stat().st_size:,} bytes, within "
                    f"{differences[name]:.1e} of the largest output"
                )
        finally:
            # The card describes the files that were written, even if another format failed.
            if differences:
                card = os.path.relpath(write_card(output, metadata, differences))
                print(f"{card} says what they are")
    except (ValueError, OSError, ImportError) as error:
        exit_with_error(explain(error), status=1)


def _session(checkpoint: Path, rest: Sequence[str], names: Sequence[str]) -> Session:
    """Build the network and the data of a run.

    Args:
        checkpoint: Checkpoint of the run.
        rest: Options of ``validate``.
        names: Names of the command's own options, for suggestions in errors.
    """
    args = ["validate", "--ckpt_path", str(checkpoint), "--trainer.accelerator", "cpu", *rest]
    quieten()
    session = Session(Command(resolve(args), names))
    with exit_on_invalid_options():
        session.build()
        session.open_run()
    return session


def _check_output(output: Path, formats: Sequence[str]) -> None:
    """Check before any work that the files can be written.

    Args:
        output: Path of the files without ending.
        formats: Formats to write.

    Raises:
        ValueError: If the path has an ending that will be added, or names a folder.
        OSError: If the folder cannot be made or written into.
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


def _real_images(session: Session) -> Tensor:
    """Return up to ``_IMAGES`` images of the validation set, or of the training set."""
    data = session.datamodule
    data.prepare_data()
    data.setup("fit")
    loader = data.val_dataloader() or data.train_dataloader()
    batches: list[Tensor] = []
    for images, _ in loader:
        batches.append(images)
        if sum(map(len, batches)) >= _IMAGES:
            break
    return torch.cat(batches)[:_IMAGES]


def _metadata(session: Session, entries: dict[str, Any]) -> Metadata:
    model, data = session.options.model.network, session.data_properties
    mean, std = data.normalisation
    signature = inspect.signature(import_class(model.class_path)).parameters
    arguments = {}
    for key, value in (model.get("init_args") or {}).items():
        value = list(value) if isinstance(value, tuple) else value
        default = signature[key].default if key in signature else None
        # The exported file has the weights, so loading it must not download pretrained ones.
        if value != (list(default) if isinstance(default, tuple) else default) and key not in (
            "weights",
            "pretrained",
        ):
            arguments[key] = f"torch.nn.{value.__name__}" if isinstance(value, type) else value
    return Metadata(
        data.input_shape,
        data.num_classes,
        mean,
        std,
        model.class_path,
        arguments,
        entries,
    )


def _card_entries(
    session: Session, network: nn.Module, masks: Masks | None, checkpoint: Path
) -> dict[str, Any]:
    entries: dict[str, Any] = {
        "name": session.run_folder.name if session.run_folder else type(network).__name__
    }
    entries["data"] = type(session.datamodule).__name__
    if masks is not None:
        diagnosis = diagnose(network, masks, input_shape=session.data_properties.input_shape)
        entries["density"] = (
            f"{diagnosis.density:.6g} ({diagnosis.kept:,} of {diagnosis.total:,} weights)"
        )
        entries["effective density"] = f"{diagnosis.effective_density:.6g}"
    if (accuracy := _test_accuracy(session.run_folder, checkpoint)) is not None:
        entries["test/accuracy"] = f"{accuracy:.2%}"
    if (accuracy := _last_logged(session.run_folder, "val/accuracy")) is not None:
        entries["val/accuracy, the last in the run's metrics.csv"] = f"{accuracy:.2%}"
    entries["torch"] = str(torch.__version__)
    return entries


def _test_accuracy(run: Path | None, checkpoint: Path) -> float | None:
    """Return the test accuracy of a checkpoint, or of the last test in a run of an older version.

    Older versions did not record which checkpoint a test was of.
    """
    if run is None or not (run / "metrics.csv").is_file():
        return None
    logged = progress(run)
    content = read(checkpoint) if logged.tests else None
    return (
        logged.tests.get(int(content.get("global_step", -1)))
        if isinstance(content, Mapping)
        else logged.final
    )


def _last_logged(run: Path | None, metric: str) -> float | None:
    """Return the last value of a metric in a run's metrics.csv, if there is one."""
    if run is None or not (run / "metrics.csv").is_file():
        return None
    with open(run / "metrics.csv", newline="") as file:
        values = [row[metric] for row in csv.DictReader(file) if row.get(metric)]
    return float(values[-1]) if values else None
