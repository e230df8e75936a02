"""Measure the images per second of the data pipelines "memory" and "torchvision".

    python benchmarks/data.py [--threads N] [--workers 2] [--seconds 3] [--pairs 3]

Images are random bytes in the shapes of CIFAR-10 and Tiny ImageNet, cropped and flipped, in batches
of 128; nothing is downloaded. The pipelines are timed in turn, so that a busy machine slows them
alike, and the result is the median of the ratios. The pipeline "memory" uses torch's default number
of threads, as in training; on a busy machine the threads wait for each other longer than they work,
and `--threads 1` is faster. Then separate processes measure the time until the first batch of an
epoch and the memory that an epoch adds to the one copy of the images.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import statistics
import time

import torch
from torch import Tensor

from synflow_pl.data import CIFAR10, ImageDataModule, TinyImageNet
from synflow_pl.data.loader import Loader
from synflow_pl.runs.environment import environment

SETS: list[tuple[type[ImageDataModule], int]] = [(CIFAR10, 50_000), (TinyImageNet, 20_000)]


def random_images(kind: type[ImageDataModule], count: int, **options: object) -> ImageDataModule:
    """Return a data module of random images.

    Args:
        kind: Class whose shape and augmentation are used.
        count: Number of images.
        **options: Arguments of the class.
    """
    images = torch.empty(count, *kind.input_shape, dtype=torch.uint8).random_()

    class Random(kind):  # type: ignore[valid-type, misc]
        def images(self, train: bool) -> tuple[Tensor, Tensor]:
            return images, torch.arange(count) % self.num_classes

        # Tiny ImageNet's files are not decoded either: the transforms are measured.
        dataset = ImageDataModule.dataset

    data: ImageDataModule = Random(val_size=0, **options)
    data.setup("fit")
    return data


def speed(loader: Loader, seconds: float) -> float:
    """Return the images per second of a loader, after ten batches of warm-up.

    Args:
        loader: Loader to measure.
        seconds: Duration of the measurement.
    """
    batches = itertools.chain.from_iterable(loader for _ in itertools.count())
    for _ in range(10):
        next(batches)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        done += len(next(batches)[1])
    return done / (time.perf_counter() - started)


def start_and_memory(
    kind: type[ImageDataModule],
    count: int,
    threads: int,
    results: multiprocessing.Queue[tuple[list[float], float]],
) -> None:
    """Measure the seconds until the first batch of three epochs, and the memory that an epoch adds.

    Args:
        kind: Class whose shape and augmentation are used.
        count: Number of images.
        threads: Number of torch's threads.
        results: Queue that receives the three times, and the increase of the peak memory in bytes.
    """
    torch.set_num_threads(threads)
    data = random_images(kind, count)
    loader = data.train_dataloader()
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    starts = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        started = time.perf_counter()
        next(iter(loader))
        starts.append(time.perf_counter() - started)
    for _ in loader:
        pass
    results.put((starts, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) * 1024))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(environment())
    print(
        f"{options.threads} threads in memory, {options.workers} workers of torchvision, batches"
        " of 128, crops and flips"
    )
    for kind, count in SETS:
        shape = "x".join(map(str, kind.input_shape))
        ours = random_images(kind, count, pipeline="memory")
        theirs = random_images(kind, count, pipeline="torchvision", num_workers=options.workers)
        ratios = []
        for _ in range(options.pairs):
            fast, slow = (
                speed(ours.train_dataloader(), options.seconds),
                speed(theirs.train_dataloader(), options.seconds),
            )
            theirs.teardown("fit")
            ratios.append(fast / slow)
            print(
                f"{shape:8} in memory {fast:10,.0f} images/s   torchvision {slow:8,.0f} images/s  "
                f" ratio {ratios[-1]:5.1f}"
            )
        print(f"{shape:8} median ratio {statistics.median(ratios):.1f}")
    context = multiprocessing.get_context("spawn")
    for kind, count in SETS:
        results = context.Queue()
        process = context.Process(
            target=start_and_memory, args=(kind, count, options.threads, results)
        )
        process.start()
        starts, grown = results.get()
        process.join()
        size = count * torch.Size(kind.input_shape).numel()
        print(
            f"{'x'.join(map(str, kind.input_shape)):8} first batch of an epoch after"
            f" {' '.join(f'{1000 * s:.1f}' for s in starts)} ms;"
            f" images {size / 1e6:.0f} MB, an epoch adds {grown / 1e6:.1f} MB"
        )


if __name__ == "__main__":
    main()
