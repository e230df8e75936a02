"""Compiled and channels-last networks get the masks, weights and names of plain networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from test_precision import Small
from test_prune_at_init import OPTIMIZERS, trainer
from torch import nn

from synflow_pl import Classifier, PruneAtInit, load_weights, prune
from synflow_pl.networks import FC, VGG, Conv, ResNet
from synflow_pl.pruners import SNIP, GradualMagnitude, Pruner, SynFlow

SHAPE = (1, 12, 12)


def conv(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return Conv(SHAPE, width=width)


def fit(
    folder: Path, module: Classifier, pruning: PruneAtInit, **options: Any
) -> dict[str, torch.Tensor]:
    saving = ModelCheckpoint(dirpath=folder, filename="last")
    trainer(folder, EMAWeightAveraging(decay=0.5), pruning, saving, **options).fit(
        module, Small(*SHAPE)
    )
    return module.state_dict()


@pytest.fixture
def stepwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile with ``aot_eager``, since the C++ compilation of inductor takes a minute."""
    compile_in_place = nn.Module.compile
    monkeypatch.setattr(
        nn.Module,
        "compile",
        lambda self: compile_in_place(self, backend="aot_eager", fullgraph=True),
    )


@pytest.mark.parametrize(
    ("pruner", "options"),
    [(SynFlow(), {}), (SNIP(), {"at_epoch": 1}), (GradualMagnitude(), {"rounds": 2})],
)
def test_a_compiled_run_is_pruned_trained_and_saved_like_a_plain_one(
    tmp_path: Path, stepwise: None, pruner: Pruner, options: dict[str, Any]
) -> None:
    states, masks = [], []
    for compiled in (True, False):
        pruning = PruneAtInit(pruner, density=0.3, **{"rounds": 3, **options})
        module = Classifier(conv(), optimizer=OPTIMIZERS["SGD"], compile=compiled)
        states.append(fit(tmp_path / str(compiled), module, pruning))
        assert (module.network._compiled_call_impl is not None) == compiled
        assert pruning.masks is not None
        masks.append(pruning.masks)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[1])
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-4, atol=1e-5)
    # The checkpoint of the compiled run loads into the plain network.
    plain = load_weights(conv().requires_grad_(False), tmp_path / "True/last.ckpt")
    assert all(not plain.get_parameter(name)[~mask].any() for name, mask in masks[0].items())


NETWORKS: dict[str, Any] = {
    "fc": (lambda: FC(SHAPE, depth=3, width=16), SHAPE),
    "conv": (conv, SHAPE),
    "vgg11": (lambda: VGG(11), (3, 32, 32)),
    "resnet20": (lambda: ResNet(20), (3, 32, 32)),
}


@pytest.mark.parametrize(
    "name",
    ["fc", "conv", *(pytest.param(x, marks=pytest.mark.slow) for x in ("vgg11", "resnet20"))],
)
def test_a_pruned_network_compiles_to_the_same_outputs_without_a_graph_break(name: str) -> None:
    build, shape = NETWORKS[name]
    network, images = build(), torch.randn(4, *shape)
    prune(network, SynFlow(), density=0.1, rounds=5, input_shape=shape)
    expected = network.eval()(images)
    assert torch._dynamo.explain(network)(images).graph_break_count == 0
    network.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(network(images), expected)


def test_a_compiled_network_gets_the_masks_of_the_plain_one() -> None:
    results = []
    for compiled in (True, False):
        network, images = (
            conv(),
            torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(0)),
        )
        if compiled:
            network.compile(backend="aot_eager", fullgraph=True)
            network(images).sum().backward()
            network.zero_grad()
        for pruner in (SynFlow(), SNIP()):
            masks = prune(
                network,
                pruner,
                density=0.5,
                rounds=2,
                input_shape=SHAPE,
                batches=[(images, torch.arange(20) % 10)],
            )
            results.append((masks, network.state_dict()))
    for (left, one), (right, other) in zip(results[:2], results[2:], strict=True):
        assert all(torch.equal(left[name], right[name]) for name in left)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_wrapper_module_of_torch_compile_is_unwrapped(
    tmp_path: Path,
) -> None:
    module = Classifier(conv(), optimizer=OPTIMIZERS["SGD"])
    module.network = torch.compile(module.network, backend="eager")  # type: ignore[assignment]
    pruning = PruneAtInit(SynFlow(), density=0.3, rounds=3)
    trainer(tmp_path, pruning, ModelCheckpoint(dirpath=tmp_path, filename="last")).fit(
        module, Small(*SHAPE)
    )
    plain = load_weights(conv(), tmp_path / "last.ckpt")
    assert pruning.masks is not None
    assert all(not plain.get_parameter(name)[~mask].any() for name, mask in pruning.masks.items())


@pytest.mark.slow
def test_a_network_compiled_with_inductor_gives_the_same_outputs() -> None:
    network, images = conv(), torch.randn(4, *SHAPE)
    prune(network, SynFlow(), density=0.1, rounds=5, input_shape=SHAPE)
    expected = network(images)
    network.compile(fullgraph=True)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
    network(images).sum().backward()


@pytest.mark.parametrize(
    ("pruner", "options"),
    [(SynFlow(), {}), (SNIP(), {"mask_bias": True}), (GradualMagnitude(), {"rounds": 2})],
)
def test_a_channels_last_run_gets_the_same_masks_and_weights(
    tmp_path: Path, pruner: Pruner, options: dict[str, Any]
) -> None:
    states, masks = [], []
    for channels_last in (True, False):
        pruning = PruneAtInit(pruner, density=0.3, **{"rounds": 3, **options})
        module = Classifier(conv(), optimizer=OPTIMIZERS["SGD"], channels_last=channels_last)
        states.append(fit(tmp_path / str(channels_last), module, pruning))
        kernel = next(
            parameter
            for parameter in module.network.parameters()
            if parameter.dim() == 4 and parameter.shape[1] > 1
        )
        assert kernel.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert pruning.masks is not None
        masks.append(pruning.masks)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[1])
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-3, atol=1e-5)
    assert all(not states[0][f"network.{name}"][~mask].any() for name, mask in masks[0].items())
