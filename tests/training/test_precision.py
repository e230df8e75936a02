"""Masks are chosen in float32 or better for every precision of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins import MixedPrecision
from test_prune_at_init import OPTIMIZERS, Classes, classifier, trainer
from torch import Tensor, nn

from synflow_pl import Classifier, Masks, PruneAtInit
from synflow_pl.networks import FC, Conv, ResNet
from synflow_pl.numerics import full_precision
from synflow_pl.pruners import SNIP, GradualMagnitude, Magnitude, Pruner, SynFlow
from synflow_pl.pruners.sanity import Reinitialised
from synflow_pl.training.precision import scorable, unrounded
from tests.conftest import intersection_over_union

PRECISIONS = ["32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true"]


def masks_of(
    folder: Path,
    network: nn.Module,
    pruner: Pruner,
    data: Any,
    precision: Any = "32-true",
    **options: Any,
) -> Masks:
    callback = PruneAtInit(pruner, density=0.1, **options)
    run = trainer(
        folder,
        callback,
        precision=precision,
        max_steps=1,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    run.fit(Classifier(network, optimizer=OPTIMIZERS["SGD"]), data)
    assert callback.masks is not None
    return callback.masks


def same(left: Masks, right: Masks) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


class Small(Classes):
    """Data module with images of any shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.input_shape = shape  # type: ignore[assignment]

    def train_dataloader(self) -> Any:
        images = torch.randn(32, *self.input_shape, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(images, torch.arange(32) % 10), batch_size=16
        )


NETWORKS: dict[str, Any] = {
    "fc": (lambda: FC((1, 28, 28)), (1, 28, 28)),
    "conv": (lambda: Conv((1, 28, 28)), (1, 28, 28)),
    "resnet20": (lambda: ResNet(20), (3, 32, 32)),
}


def test_every_network_gets_the_same_masks_under_every_precision(tmp_path: Path) -> None:
    build, shape = NETWORKS["fc"]
    by_precision = {}
    for precision in PRECISIONS:
        torch.manual_seed(0)
        by_precision[precision] = masks_of(tmp_path, build(), SynFlow(), Small(*shape), precision)
    assert all(same(by_precision["32-true"], masks) for masks in by_precision.values()), [
        name for name in by_precision if not same(by_precision["32-true"], by_precision[name])
    ]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["conv", "resnet20"])
@pytest.mark.parametrize(
    "pruner", [SynFlow(), SNIP(), Magnitude()], ids=["synflow", "snip", "magnitude"]
)
def test_larger_networks_get_the_same_masks_under_every_precision(
    tmp_path: Path, network: str, pruner: Pruner
) -> None:
    build, shape = NETWORKS[network]
    by_precision = {}
    for precision in PRECISIONS:
        torch.manual_seed(0)
        by_precision[precision] = masks_of(tmp_path, build(), pruner, Small(*shape), precision)
    full, double = by_precision["32-true"], by_precision.pop("64-true")
    assert all(same(full, masks) for masks in by_precision.values()), [
        name for name in by_precision if not same(full, by_precision[name])
    ]
    if isinstance(pruner, SNIP):
        # Its losses differ by rounding in float64, which may change the order of near-equal scores.
        assert intersection_over_union(dict(full), dict(double)) >= 0.999
    else:
        assert same(full, double)


class RecordingMagnitude(Magnitude):
    """Magnitude pruner that records the weights that it scores."""

    def score(self, state: Any) -> dict[str, Tensor]:
        self.weights = {name: weight.clone() for name, weight in state.weights.items()}
        return super().score(state)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_scored_before_they_are_rounded(tmp_path: Path, precision: str) -> None:
    full = {
        name: parameter.detach().clone()
        for name, parameter in classifier().network.named_parameters()
    }
    pruner = RecordingMagnitude()
    callback = PruneAtInit(pruner, density=0.1, on_collapse="warn")
    module = classifier()
    trainer(tmp_path, callback, precision=precision, max_epochs=1, enable_checkpointing=False).fit(
        module, Classes()
    )
    kind = torch.float64 if precision == "64-true" else torch.float32
    assert all(torch.equal(weight, full[name].to(kind)) for name, weight in pruner.weights.items())
    # The copies are released after they have been scored.
    assert callback._chooser.unrounded == {}
    trained = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}.get(
        precision, torch.float32
    )
    assert all(parameter.dtype == trained for parameter in module.network.parameters())


def test_weights_trained_in_half_precision_are_scored_in_float32(tmp_path: Path) -> None:
    pruner = RecordingMagnitude()
    callback = PruneAtInit(pruner, density=0.1, at_epoch=1, on_collapse="warn")
    trainer(tmp_path, callback, precision="bf16-true", enable_checkpointing=False).fit(
        classifier(), Classes()
    )
    assert all(weight.dtype == torch.float32 for weight in pruner.weights.values())
    assert all(torch.equal(weight, weight.bfloat16().float()) for weight in pruner.weights.values())


def test_weights_initialised_after_the_copy_are_scored(tmp_path: Path) -> None:
    class Late(Classifier):
        def setup(self, stage: str) -> None:  # runs after setup() of the callbacks
            nn.init.ones_(self.network.layers[1].weight)  # type: ignore[index, union-attr, arg-type]

    pruner = RecordingMagnitude()
    module = Late(classifier().network, optimizer=OPTIMIZERS["SGD"])
    run = trainer(
        tmp_path,
        PruneAtInit(pruner, density=0.1, on_collapse="warn"),
        precision="bf16-true",
        enable_checkpointing=False,
    )
    with pytest.warns(
        UserWarning, match=r"changed after they were copied in full: layers\.1\.weight"
    ):
        run.fit(module, Classes())
    assert (pruner.weights["layers.1.weight"] == 1).all()


def test_the_reinitialise_sanity_check_works_in_half_precision(tmp_path: Path) -> None:
    weights = []
    for precision in ("32-true", "bf16-true"):
        module = classifier()
        module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
        torch.manual_seed(3)
        callback = PruneAtInit(Reinitialised(Magnitude()), density=0.3, on_collapse="warn")
        trainer(
            tmp_path, callback, precision=precision, max_epochs=1, enable_checkpointing=False
        ).fit(module, Classes())
        weights.append(
            {name: parameter.detach() for name, parameter in module.network.named_parameters()}
        )
    full, half = weights
    assert all(torch.equal(full[name].bfloat16(), half[name]) for name in full)


def test_gradual_pruning_works_in_half_precision(tmp_path: Path) -> None:
    callback, module = (
        PruneAtInit(GradualMagnitude(end_fraction=1.0), density=0.25, rounds=4),
        classifier(),
    )
    trainer(tmp_path, callback, precision="bf16-true", enable_checkpointing=False).fit(
        module, Classes()
    )
    assert callback.masks is not None
    assert callback.masks.kept == 136  # a quarter of 544
    assert all(
        not module.network.get_parameter(name)[~mask].any() for name, mask in callback.masks.items()
    )


def test_a_sync_batch_norm_is_scored_as_a_batch_norm() -> None:
    # In train mode a SyncBatchNorm communicates with other ranks, which wait for the masks. Torch
    # supports it under DDP on GPUs only, so this test checks the conversion alone.
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
    )
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    copied = scorable(synchronised, {})
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in copied.modules())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronised.modules())
    assert copied.state_dict().keys() == synchronised.state_dict().keys()
    # A network that can be scored as it is is not copied.
    linear = network.get_submodule("1")
    assert scorable(linear, {}) is linear


def test_only_tensors_that_will_be_rounded_are_copied(tmp_path: Path) -> None:
    network = nn.BatchNorm1d(3)
    assert unrounded(trainer(tmp_path, precision="bf16-mixed"), network) == {}
    copied = unrounded(trainer(tmp_path, precision="bf16-true"), network)
    assert copied.keys() == {"weight", "bias", "running_mean", "running_var"}


def test_full_precision_overrides_and_restores_settings_of_lower_precision() -> None:
    backends: Any = torch.backends
    places = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul]

    def state() -> list[str]:
        return [torch.get_float32_matmul_precision(), *(place.fp32_precision for place in places)]

    usual = state()
    with full_precision():
        assert "tf32" not in state()
    assert state() == usual
    torch.set_float32_matmul_precision("medium")
    try:
        coarse = state()
        with torch.autocast("cpu", torch.bfloat16), full_precision():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
            assert state()[0] == "highest"
            assert not {"tf32", "bf16"} & set(state()[1:])
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
            assert torch.backends.cudnn.deterministic
        assert state() == coarse
        assert not torch.backends.cudnn.deterministic
    finally:
        torch.set_float32_matmul_precision("highest")
        for place, precision in zip(places, usual[1:], strict=True):
            place.fp32_precision = precision


# -- zeros under mixed precision, in which the gradient scaler skips steps


class Steps(Callback):
    """Record the number of nonzero pruned weights and the scale of the loss after each step."""

    def __init__(self, pruning: PruneAtInit) -> None:
        self.pruning = pruning
        self.nonzeros = 0
        self.scales: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert self.pruning.masks is not None
        for parameter, mask in self.pruning.masks.parameters(pl_module.network):  # type: ignore[arg-type]
            self.nonzeros += int(parameter[~mask].count_nonzero())
        plugin = trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
            self.scales.append(plugin.scaler.get_scale())


def test_pruned_weights_stay_zero_if_a_gradient_scaler_skips_steps(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3)
    pruning = PruneAtInit(SynFlow(), density=0.1)
    steps, module = Steps(pruning), classifier()
    module.optimizer = OPTIMIZERS["SGD"]
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    options: Any = {
        "plugins": [plugin],
        "gradient_clip_val": 0.1,
        "accumulate_grad_batches": 2,
        "max_epochs": 4,
    }
    trainer(tmp_path, pruning, steps, enable_checkpointing=False, **options).fit(module, Classes())
    halved = sum(
        then < before for before, then in zip(steps.scales, steps.scales[1:], strict=False)
    )
    grown = sum(then > before for before, then in zip(steps.scales, steps.scales[1:], strict=False))
    assert halved >= 3  # steps are skipped while the scale is too large
    assert grown >= 1  # other steps are not skipped
    assert steps.nonzeros == 0
    assert all(parameter.isfinite().all() for parameter in module.parameters())
