from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from synflow_pl import prune
from synflow_pl.networks import ResNet
from synflow_pl.pruners import (
    FORCE,
    NTKSAP,
    PX,
    SNIP,
    FisherOBD,
    GraSP,
    GRASPIt,
    HutchinsonOBD,
    ProsPr,
    Pruner,
    PruningState,
)
from tests.pruners.networks import half_square, scores, small, small_batches


def test_snip_is_the_magnitude_of_the_weight_times_the_gradient_of_the_mean_loss() -> None:
    # f(x) = w . x with w = (2, -1), half the squared error. For x = (1, 3): f = -1, target 1, error
    # -2.
    network = nn.Linear(2, 1, bias=False)
    network.weight.data = torch.tensor([[2.0, -1.0]])
    batches = [(torch.tensor([[1.0, 3.0]]), torch.tensor([1.0]))]
    # dL/dw = error * x = (-2, -6), so |w dL/dw| = (4, 6).
    assert scores(SNIP(), network, batches, half_square)["weight"].tolist() == [[4.0, 6.0]]


def test_snip_weights_a_short_last_batch_by_its_number_of_images() -> None:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1.0)
    images, targets = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0.0, 0.0, 0.0])
    parts = [(images[:2], targets[:2]), (images[2:], targets[2:])]
    # The gradient is the mean of x^2, which is (1 + 4 + 9) / 3. The mean of the means of the
    # batches would be (2.5 + 9) / 2.
    assert scores(SNIP(), network, parts, half_square)["weight"].item() == pytest.approx(14 / 3)


def test_snip_is_the_derivative_of_the_loss_by_each_mask_entry() -> None:
    network, batches = small(), small_batches()
    found = scores(SNIP(), network, batches)
    weights = {
        name: parameter.detach()
        for name, parameter in network.named_parameters()
        if parameter.dim() == 2
    }

    def loss(name: str, index: int, entry: float) -> float:
        mask = torch.ones_like(weights[name])
        mask.view(-1)[index] = entry
        logits = [
            (functional_call(network, {name: weights[name] * mask}, (images,)), labels)
            for images, labels in batches
        ]
        return sum(
            float(nn.functional.cross_entropy(x, y, reduction="sum")) for x, y in logits
        ) / sum(len(y) for _, y in logits)

    for name, weight in weights.items():
        for index in range(weight.numel()):
            slope = (loss(name, index, 1 + 1e-6) - loss(name, index, 1 - 1e-6)) / 2e-6
            assert found[name].view(-1)[index].item() == pytest.approx(abs(slope), abs=1e-8)


@pytest.mark.parametrize(
    "pruner", [SNIP, FORCE, GraSP, GRASPIt, ProsPr], ids=lambda pruner: pruner.__name__
)
def test_train_mode_uses_batch_statistics_and_leaves_running_statistics_unchanged(
    pruner: type[Pruner],
) -> None:
    network = ResNet(8, width=4)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    batches = [(torch.randn(6, 3, 8, 8), torch.randint(0, 10, (6,)))]
    found = scores(pruner(), network, batches, train_mode=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not torch.allclose(found["fc.weight"], scores(pruner(), network, batches)["fc.weight"])
    # In train mode the scores do not depend on running statistics.
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(7.0)
    again = scores(pruner(), network, batches, train_mode=True)
    assert all(torch.equal(score, again[name]) for name, score in found.items())


def test_dropout_in_train_mode_is_reproducible_and_does_not_advance_the_random_state() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    batches = [(torch.randn(6, 4), torch.randint(0, 3, (6,)))]
    before = torch.get_rng_state()
    first = scores(SNIP(), network, batches, train_mode=True)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(
        first["0.weight"], scores(SNIP(), network, batches, train_mode=True)["0.weight"]
    )


def test_iterated_snip_scores_the_loss_of_the_pruned_network() -> None:
    masks_seen: list[dict[str, Tensor]] = []
    seen: list[dict[str, Tensor]] = []

    class Recording(SNIP):
        def score(self, state: PruningState) -> dict[str, Tensor]:
            found = super().score(state)
            masks_seen.append({name: mask.clone() for name, mask in state.masks.items()})
            seen.append({name: score.clone() for name, score in found.items()})
            return found

    batches = small_batches()
    prune(small(), Recording(), num_kept=6, rounds=2, batches=batches)
    expected = scores(SNIP(), small(), batches, masks=masks_seen[1])
    # 20 * (6 / 20) ** (1 / 2) = 10.95
    assert sum(int(mask.sum()) for mask in masks_seen[1].values()) == 11
    assert all(torch.equal(seen[1][name], score) for name, score in expected.items())
    assert any(
        not torch.allclose(seen[0][name][mask], seen[1][name][mask])
        for name, mask in masks_seen[1].items()
    )


@pytest.mark.parametrize(
    ("pruner", "remedy"),
    [
        *(
            (pruner, "loss= as a function of network and batch")
            for pruner in (SNIP, GraSP, FORCE, ProsPr, FisherOBD, PX)
        ),
        (NTKSAP, "wrap the network in a module that returns them"),
    ],
)
def test_a_network_that_does_not_return_a_tensor_is_an_error_that_names_the_type(
    pruner: type[Pruner], remedy: str
) -> None:
    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.layer(x), hidden=x)

    batches = [(torch.randn(2, 4), torch.tensor([0, 1]))]
    with pytest.raises(
        TypeError,
        match=rf"^Outputs returns a SimpleNamespace, but .* needs one tensor.*: .*{remedy}",
    ):
        prune(Outputs(), pruner(), density=0.5, rounds=1, input_shape=(4,), batches=batches)


@pytest.mark.parametrize(
    "pruner", [SNIP, GraSP, FORCE, NTKSAP, ProsPr, HutchinsonOBD, FisherOBD, PX]
)
def test_a_branch_of_torch_cond_is_scored_as_the_function_that_runs(pruner: type[Pruner]) -> None:
    class Chooses(nn.Module):
        def __init__(self, by_cond: bool) -> None:
            super().__init__()
            self.a, self.b, self.by_cond = nn.Linear(4, 8), nn.Linear(8, 3), by_cond

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x).relu()
            if not self.by_cond:
                return self.b(hidden)
            return torch.cond(
                hidden.sum() >= 0, lambda y: self.b(y), lambda y: self.b(-y), (hidden,)
            )

    torch.manual_seed(0)
    plain = Chooses(False)
    other = copy.deepcopy(plain)
    other.by_cond = True
    batches = [(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))]
    options = {"density": 0.5, "rounds": 1, "input_shape": (4,), "batches": batches}
    right, masks = (
        prune(each, pruner(seed=0) if pruner is NTKSAP else pruner(), **options)
        for each in (plain, other)
    )
    assert all(torch.equal(right[name], masks[name]) for name in right)


@pytest.mark.parametrize(
    "pruner", [ProsPr, HutchinsonOBD, FisherOBD, PX], ids=lambda pruner: pruner.__name__
)
def test_a_batch_without_examples_makes_no_difference(pruner: type[Pruner]) -> None:
    batches = [(torch.randn(n, 3, 8, 8), torch.randint(0, 10, (n,))) for n in (4, 0, 3)]
    network = ResNet(8, width=4)
    options: dict[str, Any] = {"seed": 0} if pruner is HutchinsonOBD else {}
    found = scores(pruner(**options), network, batches, input_shape=(3, 8, 8))
    expected = scores(pruner(**options), network, [batches[0], batches[2]], input_shape=(3, 8, 8))
    assert all(score.isfinite().all() for score in found.values())
    assert all(torch.equal(score, expected[name]) for name, score in found.items())
