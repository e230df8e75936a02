"""Reproducible numerics for scoring, independent of the precision settings of training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

__all__ = ["full_precision", "without_onednn"]


@contextmanager
def full_precision() -> Iterator[None]:
    """Disable autocast, TF32, bfloat16 products, compiled graphs and nondeterministic convolutions.

    It can be used as a context manager and as a decorator; the settings are restored on exit.

    Scores are compared across layers and rounds, so an error of 2^-11 in each product would decide
    which weights are kept, and cuDNN's convolutions use TF32 by default. A compiled network hides
    its operations from tracing.
    """
    backends: Any = torch.backends
    settings = (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    )
    cudnn = backends.cudnn.deterministic, backends.cudnn.benchmark
    precisions, matmul = (
        [setting.fp32_precision for setting in settings],
        torch.get_float32_matmul_precision(),
    )
    with ExitStack() as stack:
        accelerator = torch.accelerator.current_accelerator()
        for device in {"cpu", accelerator.type if accelerator is not None else "cpu"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        # Without torch._dynamo nothing is compiled yet, and importing it takes a second.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            # torch stores each precision twice and raises an error where the two values disagree;
            # the older setters write both.
            torch.set_float32_matmul_precision("highest")
            backends.cudnn.allow_tf32 = False
            backends.mkldnn.conv.fp32_precision = "ieee"
            backends.cudnn.deterministic, backends.cudnn.benchmark = True, False
            yield
        finally:
            backends.cudnn.deterministic, backends.cudnn.benchmark = cudnn
            torch.set_float32_matmul_precision(matmul)
            backends.cudnn.allow_tf32 = precisions[1] == "tf32"
            for setting, precision in zip(settings, precisions, strict=True):
                setting.fp32_precision = precision


@contextmanager
def without_onednn() -> Iterator[None]:
    """Compute convolutions on the CPU as matrix products, without oneDNN.

    It can be used as a context manager and as a decorator. A matrix product of non-negative numbers
    is zero exactly where all products are zero; oneDNN's Winograd convolution rounds there.
    """
    mkldnn: Any = torch.backends.mkldnn
    (enabled, *_) = mkldnn.set_flags(_enabled=False, _fp32_precision=None)
    try:
        yield
    finally:
        mkldnn.set_flags(_enabled=enabled, _fp32_precision=None)
