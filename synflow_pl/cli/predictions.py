"""Write ``predictions.csv``, and run the command ``predict`` on exported files."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from synflow_pl.cli.options import Options, exit_with_error
from synflow_pl.data.image_folder import image_files, resize_transform
from synflow_pl.data.torchvision_loader import ImageFiles
from synflow_pl.export import Metadata, load_exported
from synflow_pl.io import atomic_write, check_folder, explain

__all__ = ["predict_exported", "write_predictions"]

EXPORTED = (".safetensors", ".onnx", ".pt2")
_BATCH = 64


def write_predictions(path: Path, images: Iterable[object], probabilities: Tensor) -> None:
    """Write a CSV row for each image: its number or file, the likeliest class and its probability.

    Args:
        path: Path of the CSV file, which is written atomically.
        images: Numbers or files of the images.
        probabilities: Class probabilities, of shape (N, num_classes).
    """
    best, classes = probabilities.max(1)
    with atomic_write(path) as file:
        text = io.TextIOWrapper(file, newline="", write_through=True)
        writer = csv.writer(text)
        writer.writerow(["image", "class", "probability"])
        writer.writerows(
            (image, int(c), f"{float(p):.6f}")
            for image, c, p in zip(images, classes, best, strict=False)
        )
        text.detach()
    print(f"\n{len(classes)} predictions lie in {os.path.relpath(path)}")


def predict_exported(args: list[str]) -> None:
    """Classify the images of a folder with an exported file.

    Args:
        args: Options: ``--ckpt_path FILE``, ``--data.predict_dir FOLDER``, ``--output PATH`` and
            ``--trust``.
    """
    parser = Options(
        "predict",
        usage="%(prog)s --ckpt_path FILE --data.predict_dir FOLDER [--output CSV] [--trust]",
        description=predict_exported.__doc__.partition("\n")[0]
        if predict_exported.__doc__
        else None,
    )
    parser.add_argument(
        "--ckpt_path", required=True, help=f"a file that export wrote: {', '.join(EXPORTED)}"
    )
    parser.add_argument(
        "--data.predict_dir", dest="folder", required=True, help="a folder of images"
    )
    parser.add_argument(
        "--output", default=None, help="the CSV file; by default predictions.csv beside the network"
    )
    parser.add_argument("--trust", action="store_true", help="read a .pt2, which can run code")
    own = parser.parse_args(args)
    network_file = Path(own.ckpt_path)
    output = Path(own.output) if own.output else network_file.with_name("predictions.csv")
    try:
        check_folder(output.parent, "--output")
        exported = load_exported(network_file, trust=own.trust)
        metadata = exported.metadata
        if not isinstance(metadata, Metadata):
            raise ValueError(
                f"{str(network_file)!r} takes {', '.join(map(str, metadata.inputs))}, expected a"
                " network of images; call synflow_pl.export.load_exported(path) in Python"
            )
        paths = image_files(Path(own.folder).expanduser())
        transform = resize_transform(metadata.input_shape[1:], metadata.mean, metadata.std)
        pictures = ImageFiles(
            paths, torch.full((len(paths),), -1), transform, channels=metadata.input_shape[0]
        )
        probabilities = []
        for start in range(0, len(paths), _BATCH):
            images = torch.stack(
                [pictures[index][0] for index in range(start, min(start + _BATCH, len(paths)))]
            )
            probabilities.append(exported(images).softmax(1))
        write_predictions(output, paths, torch.cat(probabilities))
    except (ValueError, OSError, ImportError) as error:
        exit_with_error(explain(error), status=1)
