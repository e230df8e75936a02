from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from synflow_pl import prune
from synflow_pl.networks import ResNet
from synflow_pl.pruners import SNIP, ProsPr
from tests.pruners.networks import half_square, scores, small, small_batches


def one_weight(pruner: ProsPr) -> float:
    """Return the score of f(x) = w x with w = 2 and the loss w^2 / 2."""
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(2.0)
    batches = [(torch.ones(1, 1), torch.zeros(1))]
    return scores(pruner, network, batches, half_square)["weight"].item()


def test_prospr_by_hand() -> None:
    # The gradient is w. One step of rate 0.1 leads to 0.9 w, where the loss has the derivative
    # 0.9 w by the new and 0.81 w by the first weight. Times w = 2: 3.24, and 3.6 to first order.
    assert one_weight(ProsPr(1, 0.1, 0.0)) == pytest.approx(3.24)
    assert one_weight(ProsPr(1, 0.1, 0.0, first_order=True)) == pytest.approx(3.6)
    # With momentum 0.5, v is w, then 0.5 w + 0.9 w = 1.4 w, and the second step leads to
    # 0.9 w - 0.14 w = 0.76 w: the score is 0.76^2 * 4, to first order 0.76 * 4.
    assert one_weight(ProsPr(2, 0.1, 0.5)) == pytest.approx(2.3104)
    assert one_weight(ProsPr(2, 0.1, 0.5, first_order=True)) == pytest.approx(3.04)
    # With the first v constant, the second step has the derivative 1 - 0.1: the score is
    # 0.76 * 0.9 * 4.
    assert one_weight(ProsPr(2, 0.1, 0.5, detach_first=True)) == pytest.approx(2.736)


def loss_after_training(
    network: nn.Module, entries: dict[str, Tensor], steps: int, lr: float, momentum: float
) -> float:
    """Return the loss after some steps of training from masked weights, by a plain loop."""
    batches = small_batches()
    values = {name: parameter.detach() for name, parameter in network.named_parameters()}
    values = {name: value * entries.get(name, 1) for name, value in values.items()}
    velocity = {name: torch.zeros_like(value) for name, value in values.items()}
    for step in range(steps + 1):
        images, labels = batches[step % len(batches)]
        leaves = {name: value.requires_grad_() for name, value in values.items()}
        loss = cross_entropy(functional_call(network, leaves, (images,)), labels)
        if step == steps:
            return loss.item()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        for (name, value), gradient in zip(leaves.items(), gradients, strict=True):
            # A removed weight is not trained, and neither is a frozen parameter.
            trains = (entries[name] != 0 if name in entries else 1) * gradient
            trains = trains if network.get_parameter(name).requires_grad else 0 * gradient
            velocity[name] = momentum * velocity[name] + trains
            values[name] = (value - lr * velocity[name]).detach()
    raise AssertionError


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("frozen", [(), ("0.weight", "2.bias")])
def test_prospr_is_the_derivative_of_the_loss_after_training_by_each_mask_entry(
    removed: bool, frozen: tuple[str, ...]
) -> None:
    network = small()
    masks = {
        name: torch.ones_like(parameter, dtype=torch.bool)
        for name, parameter in network.named_parameters()
        if parameter.dim() == 2
    }
    if removed:
        masks["0.weight"][1, 2] = masks["2.weight"][0, 3] = False
    options = (3, 0.5, 0.9)
    # The plain loop differentiates with respect to frozen parameters too.
    for name in frozen:
        network.get_parameter(name).requires_grad_(False)
    found = scores(ProsPr(*options), network, small_batches(), masks=masks)
    for name, mask in masks.items():
        for index in mask.flatten().nonzero().flatten().tolist():
            slopes = []
            for change in (1e-5, -1e-5):
                entries = {key: other.double() for key, other in masks.items()}
                entries[name].view(-1)[index] += change
                slopes.append(loss_after_training(network, entries, *options))
            slope = (slopes[0] - slopes[1]) / 2e-5
            assert found[name].view(-1)[index].item() == pytest.approx(abs(slope), abs=1e-8)


def test_first_order_prospr_is_the_gradient_after_training_times_the_first_weight() -> None:
    network = small()
    found = scores(ProsPr(2, 0.1, 0.9, first_order=True), network, small_batches())
    # Two steps of the optimiser on batches 0 and 1, and the gradient of batch 0.
    trained, batches = small(), small_batches()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    for images, labels in batches:
        optimizer.zero_grad()
        cross_entropy(trained(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    cross_entropy(trained(batches[0][0]), batches[0][1]).backward()
    for name, score in found.items():
        expected = (network.get_parameter(name) * trained.get_parameter(name).grad).abs()
        torch.testing.assert_close(score, expected.detach())


def test_prospr_with_a_tiny_rate_is_snip() -> None:
    batch = small_batches()[:1]
    expected = scores(SNIP(), small(), batch)
    for name, score in scores(ProsPr(2, 1e-12), small(), batch).items():
        torch.testing.assert_close(score, expected[name])


def test_prospr_scores_by_any_loss_of_network_and_batch() -> None:
    class Dictionaries:
        def __call__(self, network: Any, batch: Any) -> Tensor:
            return cross_entropy(network(batch["x"]), batch["y"])

    pairs = small_batches()
    expected = scores(ProsPr(), small(), pairs)
    found = scores(
        ProsPr(),
        small(),
        [{"x": x, "y": y} for x, y in pairs],
        loss=Dictionaries(),  # type: ignore[misc]
    )
    assert all(torch.equal(score, found[name]) for name, score in expected.items())


def test_random_numbers_of_prospr_are_those_of_each_step_and_the_random_state_stays() -> None:
    drawn: list[Tensor] = []

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            noise = torch.randn(x.shape, dtype=x.dtype)
            drawn.append(noise)
            return self.layer(x * (1 + noise))

    network = Noisy().double()
    before = torch.get_rng_state()
    scores(ProsPr(steps=2), network, small_batches()[:1])
    # Three passes with the gradients of steps 0, 1 and 2, then the products of steps 1 and 0.
    assert torch.equal(drawn[3], drawn[1])
    assert torch.equal(drawn[4], drawn[0])
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(before, torch.get_rng_state())


def peak_of_saved_bytes(pruner: ProsPr) -> int:
    """Return the largest number of bytes that graphs of derivatives keep at one time."""
    live, peak = 0, 0

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def release(size: int) -> None:
        nonlocal live
        live -= size

    def pack(tensor: Tensor) -> Saved:
        nonlocal live, peak
        saved, size = Saved(tensor), tensor.numel() * tensor.element_size()
        live += size
        peak = max(peak, live)
        weakref.finalize(saved, release, size)
        return saved

    torch.manual_seed(0)
    network, batches = ResNet(8, width=4), [(torch.randn(16, 3, 8, 8), torch.randint(0, 10, (16,)))]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        scores(pruner, network, batches, train_mode=True)
    return peak


def test_memory_for_derivatives_does_not_grow_with_the_number_of_steps() -> None:
    assert peak_of_saved_bytes(ProsPr(steps=6)) == peak_of_saved_bytes(ProsPr(steps=1))
    first_order = peak_of_saved_bytes(ProsPr(steps=6, first_order=True))
    assert first_order == peak_of_saved_bytes(ProsPr(steps=1, first_order=True))
    assert first_order < peak_of_saved_bytes(ProsPr(steps=1)) / 2


def test_impossible_options_of_prospr_are_an_error() -> None:
    with pytest.raises(ValueError, match="steps: 0 must be at least 1; for no steps choose SNIP"):
        ProsPr(steps=0)
    with pytest.raises(ValueError, match=r"lr: 0\.0 must be positive"):
        ProsPr(lr=0.0)
    with pytest.raises(ValueError, match=r"momentum: 1\.0 must be in \[0, 1\)"):
        ProsPr(momentum=1.0)
    with pytest.raises(ValueError, match="detach_first: True, but first_order=True"):
        ProsPr(first_order=True, detach_first=True)


def test_prospr_prunes_a_network_of_which_nothing_is_trained() -> None:
    network = small().requires_grad_(False)
    assert prune(network, ProsPr(), density=0.5, batches=small_batches()[:1]).kept == 10
