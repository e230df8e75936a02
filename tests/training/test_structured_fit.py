"""Groups of weights are pruned by the callback: small training, resume and two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from test_compacted import SHAPE, Classes, Sizes, classifier

from synflow_pl import PruneAtInit, load_weights
from synflow_pl.networks import ResNet
from synflow_pl.pruners import SNIP, GradualMagnitude, SynFlow
from tests.processes import run_script

KINDS: list[dict[str, Any]] = [
    {"granularity": "unit", "density": 0.3},
    {"granularity": "unit", "flops": 0.3, "rounds": "auto"},
    {"granularity": "kernel", "density": 0.2},
    {"granularity": "block:2x2", "parameters": 0.3},
    {"granularity": "2:4"},
]


def fit(
    folder: Path, epochs: int = 2, ckpt_path: Path | None = None, pruner: Any = None, **options: Any
) -> Any:
    module, sizes = classifier(), Sizes()
    callback = PruneAtInit(pruner or SynFlow(), **{"rounds": 10, **options})
    trainer = Trainer(
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        precision="64-true",
        callbacks=[
            callback,
            ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1, save_last=True),
            sizes,
        ],
    )
    trainer.fit(module, Classes(), ckpt_path=ckpt_path)
    return module, sizes, callback


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_resumed_training_of_groups_is_the_undisturbed_one(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    module, _, callback = fit(tmp_path, **kind)
    other, _, resumed = fit(tmp_path / "more", ckpt_path=tmp_path / "epoch=0.ckpt", **kind)
    for name, mask in callback.masks.items():
        assert torch.equal(mask, resumed.masks[name])
        assert not bool(module.network.get_parameter(name)[~mask].any())
    for key, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_a_network_pruned_by_units_is_trained_at_its_size_and_saved_whole(tmp_path: Path) -> None:
    """Weights and outputs are those of the training that only masks the units."""
    kind = {"granularity": "unit", "density": 0.3, "rounds": "auto"}
    whole, full, masked = fit(tmp_path / "whole", **kind)
    module, small, compacted = fit(tmp_path / "small", compact=True, **kind)
    assert small.network == small.optimiser == small.wrapped < 0.4 * full.network
    assert compacted.masks.kept == masked.masks.kept
    loaded = load_weights(
        ResNet(8, width=8, input_shape=SHAPE).double(), tmp_path / "small" / "last.ckpt"
    )
    images = torch.randn(8, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(loaded.eval()(images), whole.network.eval()(images))
    torch.testing.assert_close(module.network.eval()(images), whole.network(images))


def test_a_data_driven_pruner_prunes_units_on_training_batches(tmp_path: Path) -> None:
    _, _, callback = fit(
        tmp_path, pruner=SNIP(), rounds=1, granularity="unit", density=0.5, on_collapse="warn"
    )
    assert 0.4 < callback.masks.density <= 0.5


def test_gradual_pruning_removes_kernels_round_by_round(tmp_path: Path) -> None:
    """Kernels that are removed in one round stay removed in the next."""
    _, _, callback = fit(
        tmp_path,
        pruner=GradualMagnitude(),
        rounds=4,
        granularity="kernel",
        density=0.5,
        on_collapse="warn",
    )
    assert callback.masks.kept <= 0.5 * callback.masks.total + 1
    for name in callback.masks.weights:
        kept = callback.masks[name].flatten(2).sum(2) if callback.masks[name].dim() > 2 else None
        if kept is not None:
            size = callback.masks[name].flatten(2).shape[2]
            assert bool(((kept == 0) | (kept == size)).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"granularity": "2:4", "sanity": "shuffle"},
            "sanity: 'shuffle' moves single weights, and granularity '2:4' removes groups",
        ),
        (
            {"granularity": "2:4", "pruner": GradualMagnitude()},
            "granularity '2:4', .* a gradual pruning needs density or num_kept",
        ),
        (
            {"flops": 0.5, "pruner": GradualMagnitude()},
            "flops 0.5, parameters None: a gradual pruning needs density or num_kept",
        ),
    ],
    ids=range(3),
)
def test_options_that_groups_exclude_are_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneAtInit(**{"pruner": SynFlow(), **options})


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, TESTS)
import torch
from pytorch_lightning import Trainer
from test_compacted import Classes, classifier
from synflow_pl import PruneAtInit
from synflow_pl.pruners import SynFlow

if __name__ == "__main__":
    callback = PruneAtInit(SynFlow(), rounds="auto", granularity="unit", density=0.3)
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        accelerator="cpu", precision="64-true", devices=2, strategy="ddp", callbacks=[callback],
    )
    module = classifier()
    trainer.fit(module, Classes())
    out = Path(f"rank{trainer.global_rank}.pt")
    torch.save((dict(callback.masks), module.network.state_dict()), out)
"""


def test_two_processes_prune_the_units_of_one(tmp_path: Path) -> None:
    tests = str(Path(__file__).parent)
    run_script(SCRIPT.replace("TESTS", repr(tests)), tmp_path, limit=300)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    _, _, alone = fit(tmp_path / "alone", epochs=1, **KINDS[0] | {"rounds": "auto"})
    for masks, _ in ranks:
        assert all(torch.equal(mask, alone.masks[name]) for name, mask in masks.items())
    for name, mask in alone.masks.items():
        weights = [state[name] for _, state in ranks]
        assert torch.equal(*weights)
        assert not bool(weights[0][~mask].any())
