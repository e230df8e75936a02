"""Costs of algorithms, counted in operations and not timed, so that results hold on any machine."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from synflow_pl import Classifier, PruneAtInit, prune
from synflow_pl.data import Digits
from synflow_pl.data.loader import Loader
from synflow_pl.device_selection import smallest_mask
from synflow_pl.networks import Conv, ResNet
from synflow_pl.order_statistics import smallest_of_many
from synflow_pl.pruners import Pruner, PruningState, Random, SynFlow

# Operations that make the host wait for a device, since their results depend on its data.
SYNCS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal")


class Counted(TorchDispatchMode):
    """Count the calls of each operation, and the numbers that element-wise operations write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.written = 0

    def __torch_dispatch__(
        self, target: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = target._schema.name.split("::")[1].rstrip("_")
        self.calls[name] += 1
        result = target(*args, **(kwargs or {}))
        if (
            isinstance(result, Tensor)
            and result.is_floating_point()
            and name in ("clone", "abs", "sign", "mul", "index_select")
        ):
            self.written += result.numel()
        return result


def costs(rounds: int, density: float = 0.01) -> Counted:
    torch.manual_seed(0)
    network = ResNet(20)
    with Counted() as counted:
        prune(network, SynFlow(), density=density, rounds=rounds, input_shape=(3, 32, 32))
    return counted


def test_a_round_is_one_forward_and_one_backward_pass_through_each_layer() -> None:
    few, more = costs(3), costs(8)
    # 19 convolutions of 3x3 and two shortcuts of 1x1. The first has no gradient of its input, but
    # one of its weight.
    assert more.calls["convolution"] - few.calls["convolution"] == 5 * 21
    assert more.calls["convolution_backward"] - few.calls["convolution_backward"] == 5 * 21


def test_weights_are_copied_once_per_pruning_and_scores_are_written_once_per_round() -> None:
    parameters = sum(parameter.numel() for parameter in ResNet(20).parameters())
    # At density 0.9 no weight is shrunk to a block, so all rounds cost the same. Activations are
    # written as well.
    few, more = costs(3, 0.9), costs(8, 0.9)
    assert (more.written - few.written) / 5 < 3.5 * parameters
    assert few.calls["clone"] == more.calls["clone"]


def test_late_rounds_write_less_than_early_ones() -> None:
    assert (costs(40).written - costs(20, 0.1).written) / 20 < (
        costs(12, 0.9).written - costs(2, 0.9).written
    ) / 10


def test_a_round_reads_one_number_from_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synflow_pl.selection._is_synchronous", lambda device: False)
    few, more = costs(3), costs(8)
    assert sum(more.calls[name] - few.calls[name] for name in SYNCS) == 5


def test_selection_without_synchronisation_gives_the_same_masks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = ResNet(20).double()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    expected = prune(network, SynFlow(), density=0.01, rounds=30, input_shape=(3, 32, 32))
    network.load_state_dict(state)
    monkeypatch.setattr("synflow_pl.selection._is_synchronous", lambda device: False)
    found = prune(network, SynFlow(), density=0.01, rounds=30, input_shape=(3, 32, 32))
    assert all(torch.equal(mask, found[name]) for name, mask in expected.items())


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_the_lowest_candidates_of_several_tensors_are_selected_with_ties_broken_by_position(
    count: int,
) -> None:
    parts = [torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, -3.0, 5.0])]
    candidates = [torch.tensor([True, False, True]), torch.tensor([True, True, False, True])]
    # In the order of selection: the last 1, the middle one, the first, then 2 and 5. The scores 0
    # and -3 are no candidates.
    order = [(1, 1), (1, 0), (0, 2), (0, 0), (1, 3)]
    expected = sorted(order[:count])
    found = list(smallest_of_many(parts, candidates, 5, count))
    assert [(part, int(at)) for part, places in enumerate(found) for at in places] == expected
    with Counted() as counted:
        masks = smallest_mask(parts, candidates, count)
    assert sum(counted.calls[name] for name in SYNCS) == 0
    assert [(part, int(at)) for part, mask in enumerate(masks) for at in mask.nonzero()] == expected


def test_pruning_without_data_creates_and_iterates_no_data_loader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts: list[str] = []
    iterate = Loader.__iter__
    monkeypatch.setattr(
        Loader, "__iter__", lambda loader: (starts.append("epoch"), iterate(loader))[1]
    )

    class Counting(Digits):
        def train_dataloader(self) -> Loader:
            starts.append("loader")
            return super().train_dataloader()

    def fit(callback: PruneAtInit) -> list[str]:
        starts.clear()
        trainer = Trainer(
            max_epochs=2,
            limit_train_batches=2,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            callbacks=[callback],
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        trainer.fit(Classifier(Conv()), datamodule=Counting())
        return list(starts)

    dense = fit(PruneAtInit(None))
    assert dense.count("loader") == 1
    assert fit(PruneAtInit(SynFlow(), density=0.5, rounds=2)) == dense


def test_scores_are_computed_once_per_round() -> None:
    class Counting(Random):
        calls = 0

        def score(self, state: PruningState) -> Any:
            Counting.calls += 1
            return super().score(state)

    pruner: Pruner = Counting()
    prune(Conv(), pruner, density=0.1, rounds=7)
    assert Counting.calls == 7


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_printed_without_importing_torch_numpy_or_a_parser(option: str) -> None:
    program = (
        f"import sys; sys.argv[1:] = [{option!r}]; from synflow_pl.__main__ import main; main();"
        "heavy = {'torch', 'numpy', 'pytorch_lightning', 'jsonargparse', 'argparse'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert output.splitlines()[-1] == "[]"
