"""After each of 200 steps pruned weights are zero, and kept weights those of a masked forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from test_prune_at_init import OPTIMIZERS, Classes, trainer
from torch import Tensor, nn
from torch.func import functional_call

from synflow_pl import Classifier, PruneAtInit
from synflow_pl.networks import FC
from synflow_pl.pruners import SynFlow

STEPS = 200
ALL = {**OPTIMIZERS, "Muon": lambda parameters: torch.optim.Muon(parameters, lr=0.01, momentum=0.9)}
# Each step accumulates two batches; gradients are clipped by their norm or by value.
CLIPPED: dict[str, Any] = {"by norm": {}, "by value": {"gradient_clip_algorithm": "value"}}


class RecordWeights(Callback):
    """Record the weights after each optimiser step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step > len(self.weights):
            network: Any = pl_module.network
            self.weights.append(
                {name: p.detach().clone() for name, p in network.named_parameters()}
            )


def network(optimizer: str) -> nn.Module:
    torch.manual_seed(0)
    fc = FC((1, 2, 4), depth=3, width=16)
    if optimizer == "Muon":  # Muon accepts matrices only
        for layer in fc.layers:
            if isinstance(layer, nn.Linear):
                layer.bias = None
    return fc


def train(
    folder: Path, module: Classifier, *callbacks: Callback, clip: str, precision: Any
) -> list[dict[str, Tensor]]:
    recorded = RecordWeights()
    options = {
        "max_epochs": -1,
        "max_steps": STEPS,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.02,
        **CLIPPED[clip],
    }
    trainer(
        folder, *callbacks, recorded, enable_checkpointing=False, precision=precision, **options
    ).fit(module, Classes())
    assert len(recorded.weights) == STEPS
    return recorded.weights


def check_zeros(masks: Any, steps: list[dict[str, Tensor]]) -> None:
    removed = {name: ~mask for name, mask in masks.items()}
    assert not any(weights[name][gone].any() for weights in steps for name, gone in removed.items())
    assert all(bool(weights[name].isfinite().all()) for weights in steps for name in removed)
    assert not all(torch.equal(steps[0][name], steps[-1][name]) for name in removed)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-true"])
@pytest.mark.parametrize("optimizer", ALL)
def test_pruned_weights_are_zero_after_every_step(
    tmp_path: Path, optimizer: str, precision: str
) -> None:
    def build(parameters: Any) -> Any:
        built = ALL[optimizer](parameters)
        if precision == "16-true":
            for group in built.param_groups:
                group["eps"] = 1e-4  # the default 1e-8 is zero in float16 and gives 0 / 0
        return built

    pruning = PruneAtInit(SynFlow(), density=0.2)
    module = Classifier(network(optimizer), optimizer=build)
    steps = train(tmp_path, module, pruning, clip="by norm", precision=precision)
    check_zeros(pruning.masks, steps)


class InForward(Classifier):
    """Reference that multiplies weights by the mask in the forward pass."""

    masks: dict[str, Tensor]

    def forward(self, images: Tensor) -> Tensor:
        weights = {
            name: self.network.get_parameter(name) * mask for name, mask in self.masks.items()
        }
        logits: Tensor = functional_call(self.network, weights, (images,))
        return logits


@pytest.mark.parametrize(
    ("optimizer", "clip"),
    [
        pytest.param(
            optimizer,
            clip,
            marks=[]
            if clip == "by norm" and optimizer in ("SGD", "AdamW", "Muon")
            else pytest.mark.slow,
        )
        for optimizer in ALL
        for clip in CLIPPED
    ],
)
def test_kept_weights_equal_those_of_a_run_that_masks_its_forward_pass(
    tmp_path: Path, optimizer: str, clip: str
) -> None:
    pruning = PruneAtInit(SynFlow(), density=0.2)
    held = train(
        tmp_path,
        Classifier(network(optimizer), optimizer=ALL[optimizer]),
        pruning,
        clip=clip,
        precision="64-true",
    )
    assert pruning.masks is not None
    check_zeros(pruning.masks, held)
    module = InForward(network(optimizer), optimizer=ALL[optimizer])
    module.masks = dict(pruning.masks)
    reference = train(tmp_path, module, clip=clip, precision="64-true")
    for ours, theirs in zip(held, reference, strict=True):
        for name, mask in pruning.masks.items():
            torch.testing.assert_close(ours[name][mask], theirs[name][mask], rtol=0, atol=1e-12)
