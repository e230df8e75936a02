from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from synflow_pl.networks import ResNet
from synflow_pl.pruners import NTKSAP
from tests.pruners.networks import scores, small


def test_it_is_the_derivative_by_each_entry_of_the_mask_of_how_far_outputs_move() -> None:
    network, epsilon = small(), 0.01
    masks = {"0.weight": torch.ones(4, 3, dtype=torch.bool)}
    masks["0.weight"][1, 2] = False
    found = scores(NTKSAP(images=6, epsilon=epsilon, seed=4), network, masks=masks, input_shape=(3,))

    # The same numbers, in the order in which they are drawn: images, weights, changes.
    generator = torch.Generator().manual_seed(4)
    names = ["0.weight", "2.weight"]
    images = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    weights = {n: nn.init.kaiming_normal_(torch.empty_like(network.get_parameter(n).data), generator=generator) for n in names}
    changes = {n: epsilon * torch.randn(weights[n].shape, dtype=torch.float64, generator=generator) for n in names}

    def moved(entries: dict[str, Tensor]) -> float:
        here = functional_call(network, {n: weights[n] * entries[n] for n in names}, (images,))
        there = functional_call(network, {n: (weights[n] + changes[n]) * entries[n] for n in names}, (images,))
        return float((here - there).square().sum(1).mean())

    entries = {n: masks.get(n, torch.ones_like(weights[n])).double() for n in names}
    for name in names:
        for index in range(weights[name].numel()):
            up, down = ({n: entry.clone() for n, entry in entries.items()} for _ in range(2))
            up[name].view(-1)[index] += 1e-5
            down[name].view(-1)[index] -= 1e-5
            assert found[name].view(-1)[index].item() == pytest.approx(abs(moved(up) - moved(down)) / 2e-5, rel=1e-4, abs=1e-10)


def test_neither_weights_nor_running_statistics_count() -> None:
    network = ResNet(8, width=4)
    found = scores(NTKSAP(images=4, seed=1), network, input_shape=(3, 8, 8))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_()
        for buffer in network.buffers():
            buffer.fill_(3)
    again = scores(NTKSAP(images=4, seed=1), network, input_shape=(3, 8, 8))
    assert all(torch.equal(score, again[name]) for name, score in found.items())
    assert all(int(buffer.sum()) == 3 * buffer.numel() for buffer in network.buffers())
    assert all(module.momentum == 0.1 for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def test_weights_and_images_are_drawn_anew_in_each_round() -> None:
    class Twice(NTKSAP):
        def score(self, subject):  # type: ignore[no-untyped-def]
            first, second = super().score(subject), super().score(subject)
            assert not torch.equal(first["0.weight"], second["0.weight"])
            return second

    assert scores(Twice(images=4), small(), input_shape=(3,))


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="images: 1 must be at least 2"):
        NTKSAP(images=1)
    with pytest.raises(ValueError, match=r"epsilon: 0\.0 must be positive"):
        NTKSAP(epsilon=0.0)
