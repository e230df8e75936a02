"""The sanity checks of Frankle et al. 2021 in a fit: what of a pruning each of them leaves, and
what it changes.
"""

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
    """The masks, and the weights that training starts from."""
    start: dict[str, Tensor] = {}

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            start.update(
                {name: p.detach().clone() for name, p in pl_module.network.named_parameters()}
            )

    callback = PruneAtInit(SNIP(), density=0.25, sanity=sanity)
    trainer(folder, callback, Look(), max_epochs=1).fit(classifier(), Classes())
    assert callback.masks is not None
    return callback.masks, start


@pytest.mark.parametrize("sanity", ["shuffle", "reinitialise", "invert"])
def test_a_check_changes_one_thing(tmp_path: Path, sanity: str) -> None:
    plain, _ = started(tmp_path, None)
    masks, start = started(tmp_path, sanity)
    fresh = dict(classifier().network.named_parameters())
    same_masks = all(torch.equal(plain[name], mask) for name, mask in masks.items())
    same_weights = all(torch.equal(start[name], fresh[name] * mask) for name, mask in masks.items())
    same_counts = all(int(plain[name].sum()) == int(mask.sum()) for name, mask in masks.items())
    assert (same_masks, same_weights, same_counts) == {
        "shuffle": (False, True, True), "reinitialise": (True, False, True), "invert": (False, True, False),
    }[sanity]  # fmt: skip
    assert masks.kept == plain.kept
    if sanity == "reinitialise":
        # Drawn anew from what there was: no weight of a layer is new, and none of its values is
        # there more often than before.
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
def test_what_cannot_be_checked_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneAtInit(SNIP(), density=0.25, **options)
