"""Pruned weights are zero when they are read, even if a callback or module writes weights."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from test_prune_at_init import OPTIMIZERS, trainer
from test_trainer_features import Both
from torch import Tensor, nn

from synflow_pl import Classifier, PruneAtInit, load_weights
from synflow_pl.networks import FC
from synflow_pl.pruners import GradualMagnitude, SynFlow
from synflow_pl.training.checkpoints import load_masks


class Noise(Callback):
    """Add noise to every weight in one hook."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._write)

    def _write(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        if trainer.state.fn == "fit":
            with torch.no_grad():
                for parameter in pl_module.network.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=1e-2)


class RecordingClassifier(Classifier):
    """Count nonzero pruned weights in each forward pass."""

    callback: PruneAtInit

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        super().__init__(
            FC((1, 2, 4), depth=3, width=16), **({"optimizer": OPTIMIZERS["SGD"]} | options)
        )
        self.nonzeros: dict[str, int] = {"train": 0, "validate": 0, "sanity_check": 0}

    def forward(self, images: Tensor) -> Tensor:
        if self.callback.masks is not None:
            pairs = self.callback.masks.parameters(self.network)
            count = sum(int(p[~mask].count_nonzero()) for p, mask in pairs)
            self.nonzeros[self.trainer.state.stage.value] += count  # type: ignore[union-attr]
        return super().forward(images)


def fit(
    folder: Path,
    module: RecordingClassifier,
    *callbacks: Callback,
    first: bool = False,
    pruner: Any = None,
    **options: Any,
) -> list[str]:
    """Train, and return the warnings about pruned weights."""
    module.callback = PruneAtInit(pruner or SynFlow(), density=0.2, rounds=3)
    saving = [
        ModelCheckpoint(
            dirpath=folder / "whole", filename="{step}", save_top_k=-1, every_n_train_steps=3
        ),
        ModelCheckpoint(
            dirpath=folder / "weights", filename="{epoch}", save_top_k=-1, save_weights_only=True
        ),
    ]
    ours = [module.callback, *callbacks] if first else [*callbacks, module.callback]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(folder, *ours, *saving, **({"max_epochs": 2} | options)).fit(module, Both())
    return [str(warning.message) for warning in caught if "removed weights" in str(warning.message)]


def check(folder: Path, module: RecordingClassifier) -> None:
    masks = module.callback.masks
    assert masks is not None
    assert not any(
        bool(parameter[~mask].any()) for parameter, mask in masks.parameters(module.network)
    )
    whole, weights = (
        sorted((folder / "whole").glob("*.ckpt")),
        sorted((folder / "weights").glob("*.ckpt")),
    )
    assert whole
    assert weights
    for path in (*whole, *weights):
        network = load_weights(FC((1, 2, 4), depth=3, width=16), path)
        own = masks if path in weights else load_masks(path)
        if path in weights and isinstance(module.callback.pruner, GradualMagnitude):
            continue  # a file of weights has no masks, and those of its epoch have been replaced
        assert own is not None
        assert not any(
            bool(parameter[~mask].any()) for parameter, mask in own.parameters(network)
        ), path


@pytest.mark.parametrize("first", [True, False], ids=["after ours", "before ours"])
@pytest.mark.parametrize(
    "hook",
    [
        "on_train_batch_end",
        "on_train_batch_start",
        "on_train_epoch_end",
        "on_validation_start",
        "on_validation_end",
        "on_train_epoch_start",
    ],
)
def test_pruned_weights_stay_zero_if_a_callback_writes_weights(
    tmp_path: Path, hook: str, first: bool
) -> None:
    module = RecordingClassifier()
    messages = fit(tmp_path, module, Noise(hook), first=first)
    check(tmp_path, module)
    assert module.nonzeros["validate"] == module.nonzeros["sanity_check"] == 0
    if first and hook == "on_train_batch_start":
        return  # written after the check, and set to zero by the next step
    assert len(messages) == 1
    assert "wrote to removed weights of network.layers.1.weight (and 2 more)" in messages[0]


@pytest.mark.parametrize(
    "hook", ["on_train_batch_end", "on_train_epoch_end", "on_validation_start", "on_train_end"]
)
def test_pruned_weights_stay_zero_if_the_module_writes_weights(tmp_path: Path, hook: str) -> None:
    class Writing(RecordingClassifier):
        def write(self, *_: Any) -> None:
            with torch.no_grad():
                for parameter in self.network.parameters():
                    parameter.add_(1e-2)

    setattr(Writing, hook, Writing.write)
    module = Writing()
    fit(tmp_path, module)
    check(tmp_path, module)
    assert module.nonzeros["validate"] == 0


def test_there_is_no_warning_if_only_optimisers_write_weights(tmp_path: Path) -> None:
    module = RecordingClassifier()
    module.teacher = copy.deepcopy(module.network)
    before = [parameter.clone() for parameter in module.teacher.parameters()]
    assert fit(tmp_path, module, EMAWeightAveraging(decay=0.9)) == []
    check(tmp_path, module)
    for old, new in zip(before, module.teacher.parameters(), strict=True):
        torch.testing.assert_close(old, new)  # Lightning averages the teacher, too
    assert not module.network._state_dict_pre_hooks
    assert module.nonzeros == {"train": 0, "validate": 0, "sanity_check": 0}


@pytest.mark.parametrize(
    "averaging", [EMAWeightAveraging(decay=0.9), StochasticWeightAveraging(0.01, swa_epoch_start=1)]
)
def test_averages_have_the_zeros_if_a_callback_writes_weights(
    tmp_path: Path, averaging: Any
) -> None:
    module = RecordingClassifier()
    fit(tmp_path, module, Noise("on_train_batch_end"), copy.deepcopy(averaging), max_epochs=3)
    check(tmp_path, module)


def test_pruned_weights_stay_zero_beside_lightnings_model_pruning(tmp_path: Path) -> None:
    module = RecordingClassifier()
    parameters = [
        (layer, "weight") for layer in module.network.modules() if isinstance(layer, nn.Linear)
    ]
    pruning = ModelPruning(
        "l1_unstructured", parameters, amount=0.2, use_lottery_ticket_hypothesis=True
    )
    module.callback = PruneAtInit(SynFlow(), density=0.2)
    seen: list[int] = []

    class CheckNetwork(Callback):
        def on_validation_batch_start(self, *_: Any) -> None:
            if module.callback.masks is not None:
                present = {
                    name: layer.weight
                    for name, layer in module.network.named_modules()
                    if isinstance(layer, nn.Linear)
                }
                masks = module.callback.masks
                seen.append(
                    sum(
                        int(weight[~masks[f"{name}.weight"]].count_nonzero())
                        for name, weight in present.items()
                    )
                )

    # ModelPruning renames parameters during training, so masks cannot be compared by name.
    forward = RecordingClassifier.forward
    RecordingClassifier.forward = Classifier.forward  # type: ignore[method-assign]
    try:
        saving = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
        trainer(tmp_path, pruning, module.callback, CheckNetwork(), saving, max_epochs=3).fit(
            module, Both()
        )
    finally:
        RecordingClassifier.forward = forward  # type: ignore[method-assign]
    masks = module.callback.masks
    assert masks is not None
    assert not any(seen)
    assert not any(
        bool(parameter[~mask].any()) for parameter, mask in masks.parameters(module.network)
    )
    for epoch in range(3):
        network = load_weights(FC((1, 2, 4), depth=3, width=16), tmp_path / f"epoch={epoch}.ckpt")
        assert not any(
            bool(parameter[~mask].any()) for parameter, mask in masks.parameters(network)
        )


class Wrapped(torch.optim.Optimizer):
    """Wrapper that does not call Optimizer.__init__ and writes weights after the inner step."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups, self.state, self.defaults = (
            inner,
            inner.param_groups,
            inner.state,
            inner.defaults,
        )

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = self.inner.step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(1e-3)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> Any:  # type: ignore[override]
        return self.inner.state_dict()


def test_pruned_weights_stay_zero_under_a_wrapper_of_the_optimiser(tmp_path: Path) -> None:
    module = RecordingClassifier(
        optimizer=lambda parameters: Wrapped(OPTIMIZERS["SGD"](parameters))
    )
    fit(tmp_path, module)
    check(tmp_path, module)
    assert module.nonzeros == {"train": 0, "validate": 0, "sanity_check": 0}


def test_pruned_weights_stay_zero_under_a_wrapped_step_method(tmp_path: Path) -> None:
    def build(parameters: Any) -> Any:
        optimizer = OPTIMIZERS["SGD"](parameters)
        inner = optimizer.step

        def step(closure: Any = None) -> Any:
            loss = inner(closure)
            with torch.no_grad():
                for parameter in optimizer.param_groups[0]["params"]:
                    parameter.add_(1e-3)
            return loss

        optimizer.step = step
        return optimizer

    module = RecordingClassifier(optimizer=build)
    assert len(fit(tmp_path, module)) == 1
    check(tmp_path, module)
    assert module.nonzeros["validate"] == 0


# -- averages that Lightning does not maintain


class Deep(RecordingClassifier):
    """Average in a copy of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.average = copy.deepcopy(self.network)

    def averages(self) -> dict[str, Tensor]:
        return dict(self.average.named_parameters())

    def on_train_batch_end(self, *_: Any) -> None:
        with torch.no_grad():
            for name, tensor in self.averages().items():
                tensor.lerp_(self.network.get_parameter(name), 0.1)


class Swa(Deep):
    """Average in an AveragedModel of torch.optim.swa_utils."""

    def __init__(self) -> None:
        super().__init__()
        del self.average
        self.ema = torch.optim.swa_utils.AveragedModel(self.network)

    def averages(self) -> dict[str, Tensor]:
        return dict(self.ema.module.named_parameters())

    def on_train_batch_end(self, *_: Any) -> None:
        self.ema.update_parameters(self.network)


class Buffers(Deep):
    """Average in buffers with the parameters' names without dots, as in latent diffusion."""

    def __init__(self) -> None:
        super().__init__()
        del self.average
        self.ema = nn.Module()
        for name, parameter in self.network.named_parameters():
            self.ema.register_buffer(name.replace(".", ""), parameter.detach().clone())

    def averages(self) -> dict[str, Tensor]:
        return {
            name: self.ema.get_buffer(name.replace(".", ""))
            for name, _ in self.network.named_parameters()
        }


class Shadow(Deep):
    """Average in a dict of tensors, which are replaced at each update."""

    def __init__(self) -> None:
        super().__init__()
        del self.average
        self.shadow = {
            name: parameter.detach().clone() for name, parameter in self.network.named_parameters()
        }

    def averages(self) -> dict[str, Tensor]:
        return self.shadow

    def on_train_batch_end(self, *_: Any) -> None:
        for name, parameter in self.network.named_parameters():
            self.shadow[name] = 0.9 * self.shadow[name] + 0.1 * parameter.detach()


class Helper(Shadow):
    """Average in a list of tensors in an object of its own."""

    class Ema:
        def __init__(self, parameters: Any) -> None:
            self.shadow_params = [parameter.detach().clone() for parameter in parameters]

    def __init__(self) -> None:
        super().__init__()
        self.ema = self.Ema(self.shadow.values())
        del self.shadow

    def averages(self) -> dict[str, Tensor]:
        return dict(zip(dict(self.network.named_parameters()), self.ema.shadow_params, strict=True))

    on_train_batch_end = Deep.on_train_batch_end


@pytest.mark.parametrize(
    "pruner", [SynFlow(), GradualMagnitude(end_fraction=0.5)], ids=["at once", "gradually"]
)
@pytest.mark.parametrize("kind", [Deep, Swa, Buffers, Shadow, Helper])
def test_an_average_in_the_module_has_the_zeros(tmp_path: Path, kind: Any, pruner: Any) -> None:
    module = kind()
    messages = fit(tmp_path, module, pruner=pruner, max_epochs=4)
    masks = module.callback.masks
    assert masks is not None
    assert not any(bool(module.averages()[name][~mask].any()) for name, mask in masks.items())
    assert all(bool(module.averages()[name][mask].any()) for name, mask in masks.items())
    assert len(messages) == 1
    assert "weights of the network and held removed weights" in messages[0]


def test_an_average_that_a_callback_validates_has_the_zeros(tmp_path: Path) -> None:
    class Ema(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.average = copy.deepcopy(pl_module.network)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            with torch.no_grad():
                for mean, parameter in zip(
                    self.average.parameters(), pl_module.network.parameters(), strict=True
                ):
                    mean.lerp_(parameter, 0.1)

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            self._exchange(pl_module)

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self._exchange(pl_module)

        def _exchange(self, pl_module: Any) -> None:
            with torch.no_grad():
                for mean, parameter in zip(
                    self.average.parameters(), pl_module.network.parameters(), strict=True
                ):
                    saved = parameter.clone()
                    parameter.copy_(mean)
                    mean.copy_(saved)

    module, averaging = RecordingClassifier(), Ema()
    fit(tmp_path, module, averaging)
    check(tmp_path, module)
    assert module.nonzeros == {"train": 0, "validate": 0, "sanity_check": 0}
    assert module.callback.masks is not None
    assert not any(
        bool(parameter[~mask].any())
        for parameter, mask in module.callback.masks.parameters(averaging.average)
    )


def test_a_second_network_of_the_same_shapes_is_not_taken_for_an_average(tmp_path: Path) -> None:
    class Beside(RecordingClassifier):
        """Module with another network and its average, and with a dense copy of the network."""

        def __init__(self) -> None:
            super().__init__()
            self.other = FC((1, 2, 4), depth=3, width=16)
            self.ema = copy.deepcopy(self.other)
            self.still = copy.deepcopy(self.network)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return super().training_step(batch, index) + self.other(batch[0]).square().mean()

        def on_train_batch_end(self, *_: Any) -> None:
            with torch.no_grad():
                for mean, parameter in zip(
                    self.ema.parameters(), self.other.parameters(), strict=True
                ):
                    mean.lerp_(parameter, 0.1)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(
                [*self.network.parameters(), *self.other.parameters()], lr=0.1, weight_decay=0.01
            )

    module = Beside()
    assert fit(tmp_path, module) == []
    for network in (module.other, module.ema, module.still):
        assert all(
            parameter.count_nonzero() > 0.9 * parameter.numel()
            for parameter in network.parameters()
            if parameter.dim() > 1
        )


def test_a_network_can_be_copied_and_pickled_during_training(tmp_path: Path) -> None:
    copies: list[Any] = []

    class Copying(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            torch.save(pl_module.network, io.BytesIO())
            copies.append(copy.deepcopy(pl_module.network))

    module = RecordingClassifier()
    fit(tmp_path, module, Copying(), max_epochs=1)
    torch.nn.init.ones_(copies[0].layers[1].weight)
    assert copies[0].state_dict()["layers.1.weight"].all()  # nothing sets weights of a copy to zero
