"""Run checks on a GPU that the tests run on a CPU, in one command and without downloads.

    python benchmarks/gpu_check.py [--out FOLDER] [--device cuda] [--rounds 100]
        [--backend inductor] [--only NAME ...]

Writes gpu_check.json and gpu_check.md into the folder (by default $OUT, else the current one), and
exits with status 1 if a check failed. ``--device cpu --rounds 3 --backend aot_eager`` rehearses all
checks in a few minutes without a GPU: gloo replaces NCCL then, and "as on the CPU" compares the CPU
with itself.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# The script also runs where the package is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytorch_lightning
import torch
import torchvision
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from synflow_pl import Classifier, Masks, PruneAtInit, load_weights, prune
from synflow_pl.budget_selection import smallest_within_budget
from synflow_pl.data import Digits
from synflow_pl.device_selection import smallest_mask, smallest_within_budget_on_device
from synflow_pl.networks import FC, VGG, Conv, ResNet, TinyResNet
from synflow_pl.order_statistics import smallest_of_many
from synflow_pl.pruners import SNIP, GraSP, Magnitude, Pruner, SynFlow

SMALL, DIGITS, CIFAR, TINY = (1, 2, 4), (1, 28, 28), (3, 32, 32), (3, 64, 64)
STEPS = 200
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "Adam": partial(torch.optim.Adam, lr=0.01, weight_decay=1e-2),
    "AdamW": partial(torch.optim.AdamW, lr=0.01),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.005, momentum=0.9, weight_decay=1e-2),
    "Muon": partial(torch.optim.Muon, lr=0.01, momentum=0.9),
}
Facts = dict[str, Any]


class Options(argparse.Namespace):
    """Options of the command line."""

    device: str
    rounds: int
    backend: str


class Failed(AssertionError):
    """Raised by a check that fails; the message is its facts as JSON."""


def held(holds: bool, facts: Facts) -> Facts:
    """Return the facts of a check that holds.

    Args:
        holds: Whether the check holds.
        facts: Measured values.

    Raises:
        Failed: If the check does not hold.
    """
    if not holds:
        raise Failed(json.dumps(facts))
    return facts


# -- trainings


def batches(shape: tuple[int, ...], count: int = 64, size: int = 8) -> DataLoader[Any]:
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(count) % 10), batch_size=size)


def plain_trainer(options: Options, *callbacks: Callback, **others: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    saving = {"enable_checkpointing": False} if "default_root_dir" not in others else {}
    accelerator = "gpu" if options.device == "cuda" else options.device
    return Trainer(
        accelerator=accelerator, devices=1, callbacks=list(callbacks), **quiet, **saving, **others
    )


def without_biases(network: nn.Module) -> nn.Module:
    """Remove the biases of linear layers, since Muon optimises only matrices."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            layer.bias = None  # type: ignore[assignment]
    return network


class Watch(Callback):
    """Callback that records the weights after each optimiser step, and counts the skipped steps."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.skipped = 0
        self._scale = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.weights):
            self.weights.append(
                {name: p.detach().clone() for name, p in pl_module.network.named_parameters()}
            )
        plugin = trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
            scale = plugin.scaler.get_scale()
            self.skipped += scale < self._scale
            self._scale = scale


class InForward(Classifier):
    """Reference without zeros in the weights: the forward pass multiplies them by the masks."""

    masks: dict[str, Tensor]

    def forward(self, images: Tensor) -> Tensor:
        weights = {
            name: self.network.get_parameter(name) * mask.to(images.device)
            for name, mask in self.masks.items()
        }
        logits: Tensor = functional_call(self.network, weights, (images,))
        return logits


def steps(
    options: Options, optimizer: str, precision: Any, masks: Masks | None = None
) -> tuple[Watch, Masks]:
    """Train a small network for 200 steps of two batches, with gradients clipped by norm.

    Args:
        options: Options of the command line.
        optimizer: Key of ``OPTIMIZERS``.
        precision: Precision of the trainer.
        masks: Masks of the reference run; ``None`` prunes with the callback.

    Returns:
        The recorded weights, and the masks.
    """
    torch.manual_seed(0)
    network = (
        without_biases(FC(SMALL, depth=3, width=16))
        if optimizer == "Muon"
        else FC(SMALL, depth=3, width=16)
    )
    module = (Classifier if masks is None else InForward)(network, optimizer=OPTIMIZERS[optimizer])
    watch, pruning = Watch(), PruneAtInit(SynFlow(), density=0.2, input_shape=SMALL)
    if masks is not None:
        module.masks = dict(masks)
    plugins: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        # This scale overflows float16 at once, and again whenever the scaler has increased it.
        scaler = torch.amp.GradScaler(options.device, init_scale=2.0**24, growth_interval=10)
        plugins = {"plugins": [MixedPrecision(precision, options.device, scaler)]}
    limits: dict[str, Any] = {
        "max_epochs": -1,
        "max_steps": STEPS,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.02,
    }
    callbacks = [watch] if masks is not None else [pruning, watch]
    plain_trainer(options, *callbacks, **limits, **plugins).fit(module, batches(SMALL))
    used_masks = masks if masks is not None else pruning.masks
    assert used_masks is not None
    return watch, used_masks


def fitted_masks(
    options: Options, build: Callable[[], nn.Module], shape: Any, pruner: Pruner, **others: Any
) -> Masks:
    torch.manual_seed(0)
    pruning = PruneAtInit(
        pruner,
        density=0.1,
        input_shape=shape,
        rounds=options.rounds if isinstance(pruner, SynFlow) else None,
    )
    module = Classifier(
        build(), channels_last=others.pop("channels_last", False), optimizer=OPTIMIZERS["SGD"]
    )
    plain_trainer(options, pruning, max_steps=2, **others).fit(module, batches(shape, size=16))
    assert pruning.masks is not None
    return pruning.masks


def same(left: Masks, right: Masks) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name].cpu(), right[name].cpu()) for name in left
    )


def overlap(left: Masks, right: Masks) -> float:
    """Return the intersection over union of the kept weights."""
    both = sum(int((left[name].cpu() & right[name].cpu()).sum()) for name in left)
    return both / sum(int((left[name].cpu() | right[name].cpu()).sum()) for name in left)


# -- checks


def zeros_after_every_step(options: Options) -> Facts:
    """Check that pruned weights are zero after each of 200 steps, in every precision.

    The scaler of 16-mixed skips some steps.
    """
    revived, skipped = {}, {}
    for precision in PRECISIONS:
        for optimizer in OPTIMIZERS:
            watch, masks = steps(options, optimizer, precision)
            removed = [
                (name, ~mask.to(watch.weights[0][name].device)) for name, mask in masks.items()
            ]
            revived[f"{optimizer} {precision}"] = sum(
                int(w[name][gone].count_nonzero()) for w in watch.weights for name, gone in removed
            )
            if precision == "16-mixed":
                skipped[optimizer] = int(watch.skipped)
    return held(
        not any(revived.values()) and all(skipped.values()),
        {"revived": revived, "steps that the scaler skipped": skipped},
    )


def as_masked_forward(options: Options) -> Facts:
    """Check that in float64 kept weights equal those of a masked forward pass, to 1e-12."""
    worst = {}
    for optimizer in OPTIMIZERS:
        ours, masks = steps(options, optimizer, "64-true")
        theirs, _ = steps(options, optimizer, "64-true", masks)
        worst[optimizer] = max(
            float((a[name] - b[name])[mask.to(a[name].device)].abs().max())
            for a, b in zip(ours.weights, theirs.weights, strict=True)
            for name, mask in masks.items()
        )
    return held(max(worst.values()) <= 1e-12, {"largest difference": worst})


def masks_by_precision(options: Options) -> Facts:
    """Check that the masks are equal in every precision (SNIP in 64-true: overlap 0.999)."""
    facts: dict[str, dict[str, float]] = {}
    for name, build, shape in (("Conv", Conv, DIGITS), ("ResNet-20", partial(ResNet, 20), CIFAR)):
        for pruner in (SynFlow(), SNIP()):
            masks = {
                precision: fitted_masks(options, build, shape, pruner, precision=precision)
                for precision in PRECISIONS
            }
            facts[f"{name} {type(pruner).__name__}"] = {
                precision: overlap(masks["32-true"], masks[precision]) for precision in PRECISIONS
            }
    least = {(pruned, "64-true"): 0.999 for pruned in facts if pruned.endswith("SNIP")}
    holds = all(
        value >= least.get((pruned, name), 1)
        for pruned, row in facts.items()
        for name, value in row.items()
    )
    return held(holds, {"intersection over union with 32-true": facts})


def compiled(options: Options) -> Facts:
    """Check that a pruned network compiles without a graph break and with equal outputs.

    A checkpoint of a compiled run loads into the plain network.
    """
    facts: Facts = {}
    for name, build, shape in (("Conv", Conv, DIGITS), ("ResNet-20", partial(ResNet, 20), CIFAR)):
        torch.manual_seed(0)
        # In float64, since in float32 cuDNN's TF32 would make a difference.
        network: nn.Module = build().to(options.device, torch.float64).eval()
        prune(network, SynFlow(), density=0.1, rounds=options.rounds, input_shape=shape)
        images = torch.randn(16, *shape, device=options.device, dtype=torch.float64)
        breaks = torch._dynamo.explain(network)(images).graph_break_count
        with torch.no_grad():
            expected = network(images)
            network.compile(fullgraph=True, backend=options.backend)
            off = float((network(images) - expected).abs().max() / expected.abs().max())
        facts[name] = {"graph breaks": breaks, "largest difference, relative": off}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        network = Conv()
        network.compile(fullgraph=True, backend=options.backend)
        module, pruning = (
            Classifier(network, compile=True),
            PruneAtInit(SynFlow(), density=0.1, rounds=3, input_shape=DIGITS),
        )
        run = plain_trainer(options, pruning, max_epochs=1, default_root_dir=folder)
        run.fit(module, batches(DIGITS))
        assert pruning.masks is not None
        plain = load_weights(Conv(), run.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
        revived = sum(int(p[~mask].count_nonzero()) for p, mask in pruning.masks.parameters(plain))
    facts["checkpoint in the plain network"] = {"revived": revived}
    fine = all(
        row["graph breaks"] == 0 and row["largest difference, relative"] < 1e-9
        for row in list(facts.values())[:2]
    )
    return held(fine and revived == 0, facts)


def channels_last(options: Options) -> Facts:
    """Check that networks in channels-last format get the masks of contiguous ones."""
    build = partial(ResNet, 20)
    facts = {}
    for precision in ("32-true", "16-mixed", "bf16-mixed"):
        masks = [
            fitted_masks(options, build, CIFAR, SynFlow(), precision=precision, channels_last=on)
            for on in (False, True)
        ]
        facts[precision] = same(*masks)
    return held(all(facts.values()), {"same masks": facts})


def one_device_ddp(options: Options) -> Facts:
    """Check that DDP with one device gives the masks of a run without DDP.

    On a GPU this uses NCCL, and synchronised BatchNorm is checked too.
    """
    build = partial(ResNet, 20)
    alone = fitted_masks(options, build, CIFAR, SynFlow())
    facts: Facts = {
        "same masks": same(alone, fitted_masks(options, build, CIFAR, SynFlow(), strategy="ddp"))
    }
    facts["backend"] = torch.distributed.get_backend()
    if options.device == "cuda":
        synced = fitted_masks(options, build, CIFAR, SynFlow(), strategy="ddp", sync_batchnorm=True)
        facts["same masks, synchronised"] = same(alone, synced)
    return held(all(value is True for name, value in facts.items() if name != "backend"), facts)


def as_on_the_cpu(options: Options) -> Facts:
    """Check that masks computed on this device and on the CPU overlap to 0.999."""
    cases: list[tuple[str, Callable[[], nn.Module], Any, torch.dtype]] = [
        ("Conv, float32", Conv, DIGITS, torch.float32),
        ("ResNet-20, float32", partial(ResNet, 20), CIFAR, torch.float32),
        ("VGG-16, float64", partial(VGG, 16), CIFAR, torch.float64),
        ("TinyResNet-18, float64", partial(TinyResNet, 18), TINY, torch.float64),
    ]
    facts = {}
    for name, build, shape, dtype in cases:
        for pruner in (
            (SynFlow(), SNIP(), GraSP(), Magnitude()) if dtype == torch.float32 else (SynFlow(),)
        ):
            torch.manual_seed(0)
            network: nn.Module = build().to(dtype)
            scored = [(images, labels) for images, labels in batches(shape, size=32)]
            masks = []
            for device in ("cpu", options.device):
                rounds = options.rounds if isinstance(pruner, SynFlow) else None
                twin = copy.deepcopy(network).to(device)
                masks.append(
                    prune(
                        twin, pruner, density=0.1, rounds=rounds, input_shape=shape, batches=scored
                    )
                )
            facts[f"{name}, {type(pruner).__name__}"] = overlap(*masks)
    return held(min(facts.values()) >= 0.999, {"intersection over union": facts})


def automatic_rounds(options: Options) -> Facts:
    """Check that automatic rounds on this device and on the CPU choose the same masks."""
    torch.manual_seed(0)
    network = ResNet(20).double()
    twins = [copy.deepcopy(network).to(device) for device in ("cpu", options.device)]
    rounds: list[list[float]] = [[], []]
    masks = [
        prune(
            twin,
            SynFlow(),
            density=0.01,
            rounds="auto",
            input_shape=CIFAR,
            on_round=lambda _, density, __, seen=seen: seen.append(density),
        )
        for twin, seen in zip(twins, rounds, strict=True)
    ]
    counts, common = [len(seen) for seen in rounds], overlap(*masks)
    facts = {"rounds": counts, "intersection over union": common}
    return held(counts[0] == counts[1] and common >= 0.999, facts)


def selection(options: Options) -> Facts:
    """Check the selection without a sort against the CPU's, and time it against a stable sort."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1 << 24, generator=generator).abs()
    scores[::7] = 0.5  # ties
    masks = [torch.rand(half.shape, generator=generator) < 0.8 for half in scores.chunk(2)]
    parts = list(scores.chunk(2))
    total = sum(int(mask.sum()) for mask in masks)
    count = total // 3
    there = [part.to(options.device) for part in parts]
    marks = [mask.to(options.device) for mask in masks]
    found = smallest_mask(there, marks, count)
    expected = smallest_of_many(parts, masks, total, count)
    budget = 0.2 * float(scores.double().sum())
    facts: Facts = {
        "same scores selected": all(
            torch.equal(mask.cpu().nonzero().squeeze(1), indices)
            for mask, indices in zip(found, expected, strict=True)
        ),
        "same number within a budget": smallest_within_budget_on_device(
            there, marks, budget, total
        ).num_scores
        == smallest_within_budget(parts, masks, total, budget, total).num_scores,
    }
    holds = all(facts.values())
    joined = torch.cat(there)
    for name, work in (
        ("without a sort", lambda: smallest_mask(there, marks, count)),
        ("stable sort", lambda: joined.sort(stable=True)),
    ):
        if options.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held_before = torch.cuda.memory_allocated()
        started = time.perf_counter()
        result = work()
        if options.device == "cuda":
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - held_before
            facts[f"{name}, peak over the scores"] = peak / (4 * scores.numel())
        del result
        facts[f"{name}, seconds"] = round(time.perf_counter() - started, 4)
    return held(holds, facts)


def digits(options: Options) -> Facts:
    """Check that an epoch on the digits ends sparse and better than chance, by precision."""
    facts: Facts = {}
    for precision, others in (
        ("32-true", {}),
        ("16-mixed", {}),
        ("bf16-mixed", {}),
        ("bf16-mixed", {"channels_last": True}),
    ):
        seed_everything(0)
        pruning = PruneAtInit(SynFlow(), density=0.05, rounds=options.rounds)
        module = Classifier(
            Conv(),
            optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
            **others,
        )
        run = plain_trainer(options, pruning, max_epochs=1, precision=precision)
        started = time.perf_counter()
        run.fit(module, datamodule=Digits(batch_size=64))
        assert pruning.masks is not None
        kept = sum(
            int(module.network.get_parameter(name).count_nonzero())
            for name in pruning.masks.weights
        )
        facts[f"{precision}{', channels last' if others else ''}"] = {
            "validation accuracy": float(run.callback_metrics["val/accuracy"]),
            "kept": kept,
            "seconds": round(time.perf_counter() - started, 2),
        }
    return held(
        all(row["validation accuracy"] > 0.5 and row["kept"] <= 13_020 for row in facts.values()),
        facts,
    )


CHECKS = (
    zeros_after_every_step,
    as_masked_forward,
    masks_by_precision,
    compiled,
    channels_last,
    one_device_ddp,
    as_on_the_cpu,
    automatic_rounds,
    selection,
    digits,
)


# -- the report


def machine(options: Options) -> Facts:
    gpu = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else "none: a rehearsal, not run on a GPU"
    )
    return {
        "gpu": gpu,
        "device": options.device,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pytorch-lightning": pytorch_lightning.__version__,
        "rounds": options.rounds,
        "backend of torch.compile": options.backend,
    }


def markdown(about: Facts, results: list[Facts]) -> str:
    lines = [
        "# GPU check",
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
        "",
        "| check | holds | seconds |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {row['says']} | {'yes' if row['holds'] else '**no**'} | {row['seconds']} |"
        for row in results
    ]
    for row in results:
        lines += ["", f"## {row['check']}", "", "```", json.dumps(row["facts"], indent=1), "```"]
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "."))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rounds", type=int, default=100, help="rounds of SynFlow")
    parser.add_argument("--backend", default="inductor", help="backend of torch.compile")
    parser.add_argument(
        "--only", nargs="+", choices=[check.__name__ for check in CHECKS], metavar="NAME"
    )
    options = parser.parse_args(namespace=Options())
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --device cpu rehearses")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    about, results = machine(options), []
    for check in CHECKS:
        if options.only and check.__name__ not in options.only:
            continue
        started, holds = time.perf_counter(), True
        try:
            facts = check(options)
        except Failed as failed:
            holds, facts = False, json.loads(str(failed))
        # The other checks still run; the report and the exit status include this failure.
        except Exception:
            holds, facts = False, {"error": traceback.format_exc()}
        seconds = round(time.perf_counter() - started, 1)
        says = " ".join((check.__doc__ or "").split())
        results.append(
            {
                "check": check.__name__,
                "says": says,
                "holds": holds,
                "seconds": seconds,
                "facts": facts,
            }
        )
        print(f"{'holds' if holds else 'FAILS'}  {check.__name__}  {seconds} s", flush=True)
        # Written after each check, so that results are kept if the time runs out.
        write(
            options.out / "gpu_check.json",
            json.dumps({"machine": about, "checks": results}, indent=1) + "\n",
        )
        write(options.out / "gpu_check.md", markdown(about, results))
    return 0 if all(row["holds"] for row in results) else 1


if __name__ == "__main__":
    sys.exit(main())
