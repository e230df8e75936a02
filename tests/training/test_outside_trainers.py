"""Zeros of a loaded network hold in the training loops of other libraries.

The libraries are not dependencies: without one, its test is skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from synflow_pl import Masks, prune
from synflow_pl.pruners import SNIP, Magnitude, SynFlow

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

WORDS = torch.randint(60, (32, 12), generator=torch.Generator().manual_seed(0))


def gpt2(folder: Path) -> Any:
    """Return a small GPT-2 that was saved and loaded."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=60, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "pretrained")
    return transformers.GPT2LMHeadModel.from_pretrained(folder / "pretrained")


def assert_zeros(network: nn.Module, masks: Masks, before: dict[str, torch.Tensor]) -> None:
    for name, mask in masks.items():
        weight = network.get_parameter(name)
        assert not bool(weight[~mask].any()), name
        assert not torch.equal(weight, before[name]), name


@pytest.mark.parametrize("pruner", [SynFlow(), Magnitude(), SNIP()])
def test_a_loaded_network_is_fine_tuned_by_the_trainer_of_transformers(
    tmp_path: Path, pruner: Any
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    network = gpt2(tmp_path)
    masks = prune(
        network,
        pruner,
        density=0.4,
        rounds=5,
        scope="local",
        example_input={"input_ids": WORDS[:1]},
        batches=[{"input_ids": WORDS, "labels": WORDS}],
        loss=lambda network, batch: network(**batch).loss,
    )
    before = {name: network.get_parameter(name).detach().clone() for name in masks}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1)
    masks.hold(network, optimizer)
    trainer = transformers.Trainer(
        network,
        transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=5, use_cpu=True, report_to=[]
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in WORDS],
        optimizers=(optimizer, None),
    )
    trainer.train()
    assert_zeros(network, masks, before)
    trainer.save_model(str(tmp_path / "tuned"))
    tuned = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "tuned")
    assert all(not bool(tuned.get_parameter(name)[~mask].any()) for name, mask in masks.items())


@pytest.mark.parametrize("prepared", [False, True])
def test_a_loaded_network_is_fine_tuned_with_accelerate(tmp_path: Path, prepared: bool) -> None:
    accelerate = pytest.importorskip("accelerate")
    network = gpt2(tmp_path)
    masks = prune(
        network,
        SynFlow(),
        density=0.4,
        rounds=5,
        scope="local",
        example_input={"input_ids": WORDS[:1]},
    )
    before = {name: network.get_parameter(name).detach().clone() for name in masks}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1)
    if not prepared:
        masks.hold(network, optimizer)
    accelerator = accelerate.Accelerator(cpu=True)
    model, wrapped = accelerator.prepare(network, optimizer)
    if prepared:
        masks.hold(accelerator.unwrap_model(model), wrapped)
    for _ in range(5):
        wrapped.zero_grad()
        accelerator.backward(model(input_ids=WORDS, labels=WORDS).loss)
        wrapped.step()
    assert_zeros(network, masks, before)
