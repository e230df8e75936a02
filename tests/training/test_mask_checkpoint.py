"""The state of a pruned network is stored in a checkpoint and read from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from synflow_pl import Masks
from synflow_pl.training.checkpoints import KEY
from synflow_pl.training.gradual_pruning import Gradual
from synflow_pl.training.mask_checkpoint import NetworkState

MASKS = Masks({"0.weight": torch.tensor([[True, False], [False, True]])})


@pytest.mark.parametrize("alone", [True, False])
def test_a_stored_state_is_loaded_under_the_name_of_its_network(alone: bool) -> None:
    checkpoint: dict[str, Any] = {}
    state = NetworkState(MASKS, Gradual(begun=3, done=2, begun_steps=4), compact=True)
    state.store(checkpoint, "generator.", alone=alone)
    loaded = NetworkState.load(checkpoint, "generator._orig_mod.")
    assert loaded.masks is not None
    assert torch.equal(loaded.masks["0.weight"], MASKS["0.weight"])
    assert (loaded.gradual, loaded.compact) == (state.gradual, True)
    assert NetworkState.load(checkpoint, "other.") == NetworkState(None, None, compact=False)


def test_states_of_several_networks_are_stored_side_by_side() -> None:
    checkpoint: dict[str, Any] = {}
    NetworkState(MASKS, None, compact=False).store(checkpoint, "generator.", alone=False)
    NetworkState(None, None, compact=False).store(checkpoint, "critic.", alone=False)
    assert list(checkpoint[KEY]["networks"]) == ["generator.", "critic."]
    assert NetworkState.load(checkpoint, "generator.").masks is not None
    assert NetworkState.load(checkpoint, "critic.").masks is None
