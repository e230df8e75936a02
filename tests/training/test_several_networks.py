"""Several networks of one module are pruned by one callback each and read from checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from test_prune_at_init import Classes, classifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from synflow_pl import Masks, PruneAtInit, load_weights
from synflow_pl.pruners import GradualMagnitude, Magnitude, SynFlow
from synflow_pl.training import RewindPoint
from synflow_pl.training.checkpoints import KEY, load_masks, states


def body() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 20))


class Two(LightningModule):
    """Module of a generator and a discriminator of equal shapes, and a dense third network."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.g, self.d, self.rest = body(), body(), nn.Linear(20, 20)

    def training_step(self, batch: Any, _: int) -> None:  # type: ignore[override]
        optimizers: Any = self.optimizers()
        for optimizer, network in zip(optimizers, (self.g, self.d), strict=True):
            optimizer.zero_grad()
            self.manual_backward(self.rest(network(batch[0])).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=0.1)
            for network in (self.g, self.d)
        ]


def fit(
    folder: Path, cuts: list[PruneAtInit], epochs: int = 1, path: Path | None = None, **options: Any
) -> Two:
    torch.manual_seed(0)
    module = Two()
    saving = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    run = Trainer(max_epochs=epochs, callbacks=[*cuts, saving], **(quiet | options))  # type: ignore[arg-type]
    run.fit(module, DataLoader(TensorDataset(torch.randn(64, 20)), 16), ckpt_path=path)
    return module


def cuts(*networks: str, pruner: Any = None, **options: Any) -> list[PruneAtInit]:
    densities = {"g": 0.2, "d": 0.4}
    kinds = {"rounds": 4} if pruner is None else {}
    return [
        PruneAtInit(
            pruner or SynFlow(),
            density=densities[name],
            network=name,
            scope="local",
            **(kinds | options),
        )
        for name in networks
    ]


def same(some: Masks | None, others: Masks | None) -> bool:
    assert some is not None
    assert others is not None
    return all(torch.equal(some[name], others[name]) for name in others)


@pytest.mark.parametrize(
    "pruner", [None, GradualMagnitude(end_fraction=0.75)], ids=["at once", "gradually"]
)
def test_each_network_resumes_with_its_own_masks(tmp_path: Path, pruner: Any) -> None:
    whole = cuts("g", "d", pruner=pruner)
    module = fit(tmp_path / "whole", whole, epochs=2)
    fit(tmp_path / "half", cuts("g", "d", pruner=pruner), epochs=2)
    again = cuts("d", "g", pruner=pruner)  # in another order
    resumed = fit(tmp_path / "again", again, epochs=2, path=tmp_path / "half/epoch=0.ckpt")
    for first, second in zip(whole, reversed(again), strict=True):
        assert first.masks is not None
        assert first.masks.density == pytest.approx(
            {"g": 0.2, "d": 0.4}[first.network or ""], abs=1e-3
        )
        assert same(first.masks, second.masks)
    for kept, network in (
        (whole[0], resumed.g),
        (whole[1], resumed.d),
        (whole[0], module.g),
        (whole[1], module.d),
    ):
        assert kept.masks is not None
        assert not any(
            bool(parameter[~mask].any()) for parameter, mask in kept.masks.parameters(network)
        )


def test_a_single_callback_stores_its_masks_without_the_key_networks(tmp_path: Path) -> None:
    fit(tmp_path, cuts("g"))
    content = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    assert content[KEY]["network"] == "g."
    assert list(states(content)) == ["g."]
    assert load_masks(tmp_path / "epoch=0.ckpt") is not None


def test_reading_a_checkpoint_of_several_networks_requires_the_name_of_one(
    tmp_path: Path,
) -> None:
    both = cuts("g", "d")
    module, path = fit(tmp_path, both), tmp_path / "epoch=0.ckpt"
    for reading in (lambda: load_masks(path), lambda: load_weights(body(), path)):
        with pytest.raises(
            ValueError,
            match="holds several pruned networks, 'g', 'd', and none is asked for; give attribute=",
        ):
            reading()
    with pytest.raises(ValueError, match="'g', 'd', and 'rest' is none of them"):
        load_masks(path, "rest")
    for cut, network in zip(both, (module.g, module.d), strict=True):
        assert same(load_masks(path, cut.network), cut.masks)
        loaded = load_weights(body(), path, attribute=cut.network)
        assert all(
            torch.equal(a, b)
            for a, b in zip(loaded.parameters(), network.parameters(), strict=True)
        )  # type: ignore[attr-defined]


def test_score_from_scores_the_trained_weights_of_each_network(tmp_path: Path) -> None:
    first = cuts("g", "d")
    fit(tmp_path / "first", first)
    second = [
        PruneAtInit(
            Magnitude(),
            density=0.1,
            network=name,
            scope="local",
            score_from=tmp_path / "first/epoch=0.ckpt",
        )
        for name in ("g", "d")
    ]
    fit(tmp_path / "second", second)
    for before, after in zip(first, second, strict=True):
        assert before.masks is not None
        assert after.masks is not None
        assert not any(
            bool((after.masks[name] & ~before.masks[name]).any()) for name in before.masks
        )


def test_a_rewind_point_has_no_masks_of_any_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = Trainer(
        max_epochs=1,
        callbacks=[*cuts("g", "d"), RewindPoint()],
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    run.fit(Two(), DataLoader(TensorDataset(torch.randn(64, 20)), 16))
    stored = states(torch.load(tmp_path / "rewind.ckpt", weights_only=True))
    assert list(stored) == ["g.", "d."]
    assert not any("masks" in state for state in stored.values())


def test_files_and_metrics_of_several_networks_contain_their_names(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="run")
    both = cuts("g", "d")
    fit(tmp_path, both, logger=logger)
    for cut in both:
        assert same(Masks.load(tmp_path / f"run/masks_{cut.network}.safetensors"), cut.masks)
        assert (tmp_path / f"run/diagnosis_{cut.network}.json").is_file()
    header = (tmp_path / "run/metrics.csv").read_text().partition("\n")[0]
    assert {"pruning/g/density", "pruning/d/density"} <= set(header.split(","))


@pytest.mark.parametrize("networks", [("g", "g"), ("g", None), ("", "d"), ("g.0", "g")])
def test_two_callbacks_on_the_same_weights_are_refused(tmp_path: Path, networks: Any) -> None:
    both = [
        PruneAtInit(SynFlow(), density=0.5, network=name, input_shape=(20,)) for name in networks
    ]
    with pytest.raises(
        ValueError, match=r"two PruneAtInit prune the same weights, those of .*; leave one out"
    ):
        fit(tmp_path, both)


def test_networks_that_share_a_layer_are_refused(tmp_path: Path) -> None:
    class Sharing(Two):
        def __init__(self) -> None:
            super().__init__()
            self.d[0] = self.g[0]

    run = Trainer(
        max_epochs=1, callbacks=list(cuts("g", "d")), logger=False, default_root_dir=tmp_path
    )
    with pytest.raises(
        ValueError, match="two PruneAtInit prune the same weights, those of 'g' and of 'd'"
    ):
        run.fit(Sharing(), DataLoader(TensorDataset(torch.randn(64, 20)), 16))


def test_a_checkpoint_with_masks_that_no_callback_claims_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, cuts("g", "d"))
    for names in (("g",), ("d",)):
        other = "d" if names == ("g",) else "g"
        with pytest.raises(
            ValueError,
            match=f"holds the masks of '{other}', which no PruneAtInit of this Trainer prunes",
        ):
            fit(tmp_path, cuts(*names), epochs=2, path=tmp_path / "epoch=0.ckpt")
    fit(tmp_path / "one", cuts("g"))
    with pytest.raises(ValueError, match=r"holds the masks of 'g', .* \(they prune 'd'\)"):
        fit(tmp_path, cuts("d"), epochs=2, path=tmp_path / "one/epoch=0.ckpt")
    # The second network was trained dense.
    with pytest.raises(ValueError, match="was trained without masks"):
        fit(tmp_path, cuts("g", "d"), epochs=2, path=tmp_path / "one/epoch=0.ckpt")


def test_trainer_test_restores_the_masks_of_each_network(tmp_path: Path) -> None:
    class Tested(Two):
        def test_step(self, batch: Any, index: int) -> Tensor:
            return self.g(batch[0]).mean()

    first = cuts("g", "d")
    fit(tmp_path, first)
    again = cuts("g", "d")
    run = Trainer(
        callbacks=list(again), logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    run.test(
        Tested(),
        DataLoader(TensorDataset(torch.randn(64, 20)), 16),
        ckpt_path=tmp_path / "epoch=0.ckpt",
    )
    assert all(same(one.masks, other.masks) for one, other in zip(first, again, strict=True))


def test_pruning_a_student_leaves_its_teacher_dense(tmp_path: Path) -> None:
    module = classifier()
    module.teacher = classifier().network
    before = [parameter.clone() for parameter in module.teacher.parameters()]  # type: ignore[union-attr]
    callback = PruneAtInit(SynFlow(), density=0.2)
    run = Trainer(
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    run.fit(module, Classes())
    assert all(torch.equal(a, b) for a, b in zip(before, module.teacher.parameters(), strict=True))  # type: ignore[union-attr]
