"""Whatever the training computes in, masks are chosen in float32 or better."""

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
    """Images for the networks with convolutions."""

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
    found = {}
    for precision in PRECISIONS:
        torch.manual_seed(0)
        found[precision] = masks_of(tmp_path, build(), SynFlow(), Small(*shape), precision)
    assert all(same(found["32-true"], masks) for masks in found.values()), [
        name for name in found if not same(found["32-true"], found[name])
    ]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["conv", "resnet20"])
@pytest.mark.parametrize(
    "pruner", [SynFlow(), SNIP(), Magnitude()], ids=["synflow", "snip", "magnitude"]
)
def test_larger_networks_do_as_well(tmp_path: Path, network: str, pruner: Pruner) -> None:
    build, shape = NETWORKS[network]
    found = {}
    for precision in PRECISIONS:
        torch.manual_seed(0)
        found[precision] = masks_of(tmp_path, build(), pruner, Small(*shape), precision)
    full, double = found["32-true"], found.pop("64-true")
    assert all(same(full, masks) for masks in found.values()), [
        name for name in found if not same(full, found[name])
    ]
    if isinstance(
        pruner, SNIP
    ):  # its losses are rounded otherwise in float64, so of weights that are as good as equal another may go
        assert intersection_over_union(dict(full), dict(double)) >= 0.999
    else:
        assert same(full, double)


class Seen(Magnitude):
    """Magnitude that remembers the precision it scored in, and what it scored."""

    def score(self, state: Any) -> dict[str, Tensor]:
        self.weights = {name: weight.clone() for name, weight in state.weights.items()}
        return super().score(state)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_scored_as_they_were_before_they_were_rounded(
    tmp_path: Path, precision: str
) -> None:
    full = {
        name: parameter.detach().clone()
        for name, parameter in classifier().network.named_parameters()
    }
    pruner = Seen()
    callback = PruneAtInit(pruner, density=0.1, on_collapse="warn")
    module = classifier()
    trainer(tmp_path, callback, precision=precision, max_epochs=1, enable_checkpointing=False).fit(
        module, Classes()
    )
    kind = torch.float64 if precision == "64-true" else torch.float32
    assert all(torch.equal(weight, full[name].to(kind)) for name, weight in pruner.weights.items())
    # The full weights are given back when they have been scored.
    assert callback._unrounded == {}
    trained = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}.get(
        precision, torch.float32
    )
    assert all(parameter.dtype == trained for parameter in module.network.parameters())


def test_weights_that_were_trained_in_half_precision_are_scored_as_they_are(tmp_path: Path) -> None:
    pruner = Seen()
    callback = PruneAtInit(pruner, density=0.1, at_epoch=1, on_collapse="warn")
    trainer(tmp_path, callback, precision="bf16-true", enable_checkpointing=False).fit(
        classifier(), Classes()
    )
    assert all(weight.dtype == torch.float32 for weight in pruner.weights.values())
    assert all(torch.equal(weight, weight.bfloat16().float()) for weight in pruner.weights.values())


def test_weights_that_are_drawn_anew_after_the_copy_are_scored_as_they_are(tmp_path: Path) -> None:
    class Late(Classifier):
        def setup(self, stage: str) -> None:  # after the callbacks' own
            nn.init.ones_(self.network.layers[1].weight)  # type: ignore[index, union-attr, arg-type]

    pruner = Seen()
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


def test_a_sanity_check_draws_the_weights_anew_in_half_precision_too(tmp_path: Path) -> None:
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


def test_gradual_pruning_cuts_in_half_precision_too(tmp_path: Path) -> None:
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


def test_synchronised_batch_normalisation_is_scored_as_plain_one() -> None:
    """Torch lets DDP have it on a GPU only; in train mode it would ask other ranks, which are
    waiting for the masks.
    """
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
    )
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    twin = scorable(synchronised, {})
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in twin.modules())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronised.modules())
    assert twin.state_dict().keys() == synchronised.state_dict().keys()
    assert scorable(network.get_submodule("1"), {}) is network.get_submodule(
        "1"
    )  # nothing to do, so nothing is copied


def test_only_what_is_rounded_is_copied(tmp_path: Path) -> None:
    network = nn.BatchNorm1d(3)
    assert unrounded(trainer(tmp_path, precision="bf16-mixed"), network) == {}
    copied = unrounded(trainer(tmp_path, precision="bf16-true"), network)
    assert copied.keys() == {"weight", "bias", "running_mean", "running_var"}


def test_scoring_is_left_alone_by_switches_that_make_products_coarser() -> None:
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


# -- zeros under precisions, with steps that are skipped


class Steps(Callback):
    """What each optimiser step leaves at removed places, and the scale of the loss."""

    def __init__(self, pruning: PruneAtInit) -> None:
        self.pruning = pruning
        self.revived = 0
        self.scales: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert self.pruning.masks is not None
        for parameter, mask in self.pruning.masks.parameters(pl_module.network):  # type: ignore[arg-type]
            self.revived += int(parameter[~mask].count_nonzero())
        plugin = trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
            self.scales.append(plugin.scaler.get_scale())


def test_zeros_hold_through_steps_that_a_scaler_skips(tmp_path: Path) -> None:
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
    assert (
        halved >= 3
    )  # steps were skipped, in the beginning and whenever the scale had grown too large
    assert grown >= 1  # and others were not
    assert steps.revived == 0
    assert all(parameter.isfinite().all() for parameter in module.parameters())
