"""Plainly: a network computed as it is written, in the precision it has and the same each time,
whatever its training does to it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

__all__ = ["full_precision"]


@contextmanager
def full_precision() -> Iterator[None]:
    """No autocast, no TF32 or bfloat16 inside a float32 product, no compiled graph, no convolution
    that adds in an order of its own; also a decorator.

    Scores are compared across layers and rounds, so an error of 2^-11 in each product decides which
    weights live: TF32 is what cuDNN's convolutions use unless told otherwise. And a compiled
    network hides its operations from whoever records them.
    """
    backends: Any = torch.backends
    places = (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    )
    cudnn = backends.cudnn.deterministic, backends.cudnn.benchmark
    fine, matmul = [place.fp32_precision for place in places], torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        accelerator = torch.accelerator.current_accelerator()
        for device in {"cpu", accelerator.type if accelerator is not None else "cpu"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        if (
            "torch._dynamo" in sys.modules
        ):  # else nothing is compiled yet, and its import takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            # torch keeps each precision twice, and refuses to go on where the two disagree: the old
            # switches set both.
            torch.set_float32_matmul_precision("highest")
            backends.cudnn.allow_tf32 = False
            backends.mkldnn.conv.fp32_precision = "ieee"
            backends.cudnn.deterministic, backends.cudnn.benchmark = True, False
            yield
        finally:
            backends.cudnn.deterministic, backends.cudnn.benchmark = cudnn
            torch.set_float32_matmul_precision(matmul)
            backends.cudnn.allow_tf32 = fine[1] == "tf32"
            for place, precision in zip(places, fine, strict=True):
                place.fp32_precision = precision
