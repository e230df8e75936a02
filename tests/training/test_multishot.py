from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from test_prune_at_init import Classes, classifier, trainer

from synflow_pl import PruneAtInit
from synflow_pl.pruners import Magnitude
from synflow_pl.training import RewindPoint, load_weights
from synflow_pl.training.checkpoints import KEY
from synflow_pl.training.rewinding import REWIND, ended, level_density, mark_ended


def test_each_level_keeps_the_same_fraction_and_the_last_has_exactly_the_density() -> None:
    assert [level_density(0.008, level, 3) for level in (0, 3)] == [1, Fraction(8, 1000)]
    assert [float(level_density(0.008, level, 3)) for level in (1, 2)] == pytest.approx([0.2, 0.04])
    with pytest.raises(ValueError, match=r"density: 2 is not in \(0, 1\]"):
        level_density(2, 1, 3)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_rewind_point_has_weights_and_progress_but_neither_momentum_nor_masks(
    tmp_path: Path, epoch: int
) -> None:
    module = classifier()
    start = {name: parameter.clone() for name, parameter in module.network.named_parameters()}
    callback = PruneAtInit(Magnitude(), density=1.0)
    trainer(tmp_path, RewindPoint(epoch), callback, max_epochs=3).fit(module, Classes())
    saved = torch.load(tmp_path / REWIND, weights_only=True)
    assert saved["global_step"] == 8 * epoch
    assert saved["optimizer_states"][0]["state"] == {}
    assert saved["callbacks"] == {}
    assert "masks" not in saved[KEY]
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []
    rewound = load_weights(classifier().network, tmp_path / REWIND)
    same = [torch.equal(rewound.get_parameter(name), value) for name, value in start.items()]
    assert all(same) if epoch == 0 else not any(same)


def test_training_resumed_from_the_initialisation_ends_with_the_same_weights(
    tmp_path: Path,
) -> None:
    whole = classifier()
    trainer(tmp_path, RewindPoint(0), max_epochs=2).fit(whole, Classes())
    again = classifier()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    run = trainer(tmp_path / "again", max_epochs=2)
    run.fit(again, Classes(), ckpt_path=tmp_path / REWIND)
    assert run.global_step == 16
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )


def test_a_negative_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="epoch: -1 must be a whole number of epochs"):
        RewindPoint(-1)


def test_a_level_is_completed_once_it_is_marked(tmp_path: Path) -> None:
    assert not ended(tmp_path)
    mark_ended(tmp_path, 1, 3, 0, 0.2)
    assert ended(tmp_path)
