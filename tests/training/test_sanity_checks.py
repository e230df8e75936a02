"""Each sanity check of Frankle et al. 2021 changes either the masks or the weights of a fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from test_prune_at_init import Classes, classifier, trainer
from torch import Tensor

from synflow_pl import Masks, PruneAtInit
from synflow_pl.pruners import SNIP


def started(folder: Path, sanity: Any) -> tuple[Masks, dict[str, Tensor]]:
    """Return the masks and the weights with which training starts."""
    start: dict[str, Tensor] = {}

    class RecordStart(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            start.update(
                {name: p.detach().clone() for name, p in pl_module.network.named_parameters()}
            )

    callback = PruneAtInit(SNIP(), density=0.25, sanity=sanity)
    trainer(folder, callback, RecordStart(), max_epochs=1).fit(classifier(), Classes())
    assert callback.masks is not None
    return callback.masks, start


@pytest.mark.parametrize("sanity", ["shuffle", "reinitialise", "invert"])
def test_each_sanity_check_changes_only_masks_or_only_weights(tmp_path: Path, sanity: str) -> None:
    plain, _ = started(tmp_path, None)
    masks, start = started(tmp_path, sanity)
    fresh = dict(classifier().network.named_parameters())
    same_masks = all(torch.equal(plain[name], mask) for name, mask in masks.items())
    same_weights = all(torch.equal(start[name], fresh[name] * mask) for name, mask in masks.items())
    same_counts = all(int(plain[name].sum()) == int(mask.sum()) for name, mask in masks.items())
    assert (same_masks, same_weights, same_counts) == {
        "shuffle": (False, True, True),
        "reinitialise": (True, False, True),
        "invert": (False, True, False),
    }[sanity]
    assert masks.kept == plain.kept
    if sanity == "reinitialise":
        # The weights of a layer are drawn from its own values, without replacement.
        for name, mask in masks.items():
            values = start[name][mask]
            assert torch.isin(values, fresh[name]).all()
            assert values.unique().numel() == values.numel()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sanity": "reinitialise", "at_epoch": 1},
            "'reinitialise' draws the weights anew that training starts from; drop at_epoch",
        ),
        ({"sanity": "mirror"}, "sanity: 'mirror' must be one of invert, shuffle, reinitialise"),
    ],
)
def test_impossible_sanity_checks_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneAtInit(SNIP(), density=0.25, **options)
