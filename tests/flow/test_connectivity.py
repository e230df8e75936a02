"""Connectivity of networks so small that their paths can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import prune
from synflow_pl.flow import Connectivity, example_of, is_connected
from synflow_pl.masks import Masks
from synflow_pl.networks import VGG, ResNet
from synflow_pl.pruners import Random


def masks(**rows: list[list[int]]) -> Masks:
    return Masks(
        {
            name.replace("_", ".") + ".weight": torch.tensor(mask).bool()
            for name, mask in rows.items()
        }
    )


def connected(network: nn.Module, kept: Masks, shape: tuple[int, ...]) -> bool:
    return is_connected(network, kept, example_of(network, shape, None))


class Chain(nn.Module):
    def __init__(self, shortcut: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.shortcut = nn.Linear(2, 2), nn.Linear(2, 2), shortcut

    def forward(self, signal: Tensor) -> Tensor:
        out = self.b(torch.relu(self.a(signal)))
        return out + signal if self.shortcut else out


def test_a_network_can_be_disconnected_although_every_layer_has_kept_weights() -> None:
    # The first layer has kept weights into unit 0 only, the second reads unit 1 only.
    assert not connected(Chain(), masks(a=[[1, 1], [0, 0]], b=[[0, 1], [0, 1]]), (2,))
    assert connected(Chain(), masks(a=[[1, 1], [0, 0]], b=[[1, 0], [0, 0]]), (2,))


def test_a_shortcut_keeps_a_network_connected_when_a_whole_layer_is_pruned() -> None:
    assert connected(Chain(shortcut=True), masks(a=[[0, 0], [0, 0]], b=[[1, 1], [1, 1]]), (2,))


def test_connectivity_depends_on_masks_and_not_on_weights() -> None:
    network = Chain()
    nn.init.zeros_(network.a.weight)
    assert connected(network, masks(a=[[1, 0], [0, 0]], b=[[1, 0], [0, 0]]), (2,))


def test_no_path_starts_at_padding() -> None:
    # On an image of one pixel, eight of the nine weights of a padded 3x3 kernel read only padding.
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))
    corner = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    corner[0, 0, 0, 0] = True
    assert not connected(network, Masks({"0.weight": corner}), (1, 1, 1))
    assert connected(network, Masks({"0.weight": corner}), (1, 2, 2))


def test_a_gain_of_zero_does_not_disconnect_a_network() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    nn.init.zeros_(network[1].weight)
    assert connected(
        network, Masks({"0.weight": torch.tensor([[True, False], [False, False]])}), (2,)
    )


class Attentive(nn.Module):
    """Attention over tokens of width two with a fused projection, and a gate after it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
        self.squeeze = nn.Linear(2, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.attention(tokens, tokens, tokens)[0]
        return mixed * self.squeeze(mixed.mean(1, keepdim=True)).sigmoid()


def attentive(queries_and_keys: bool, values: bool, gate: bool) -> Masks:
    projection = torch.ones(6, 2, dtype=torch.bool)
    projection[:4], projection[4:] = queries_and_keys, values
    ones = torch.ones(2, 2, dtype=torch.bool)
    return Masks(
        {
            "attention.in_proj_weight": projection,
            "attention.out_proj.weight": ones,
            "squeeze.weight": ones & gate,
        }
    )


def test_paths_pass_attention_and_gates_as_dense_connections() -> None:
    shape = (3, 2)
    assert connected(Attentive(), attentive(True, True, True), shape)
    # Without queries and keys all tokens have equal shares, and without weights a gate is constant.
    assert connected(Attentive(), attentive(False, True, False), shape)
    assert not connected(Attentive(), attentive(True, False, True), shape)


def test_in_causal_attention_no_path_leads_from_a_token_to_an_earlier_one() -> None:
    class Causal(nn.Module):
        def __init__(self, causal: bool = True) -> None:
            super().__init__()
            self.early, self.late, self.causal = nn.Linear(1, 1), nn.Linear(1, 1), causal

        def forward(self, tokens: Tensor) -> Tensor:
            values = torch.cat([self.early(tokens[:, :1]), self.late(tokens[:, 1:])], 1).view(
                1, 1, 2, 1
            )
            return nn.functional.scaled_dot_product_attention(
                values, values, values, is_causal=self.causal
            )[:, :, 0]

    assert connected(Causal(), masks(early=[[1]], late=[[0]]), (2,))
    assert not connected(Causal(), masks(early=[[0]], late=[[1]]), (2,))
    assert connected(Causal(causal=False), masks(early=[[0]], late=[[1]]), (2,))


@pytest.mark.parametrize("build", [lambda: VGG(11), lambda: ResNet(20)])
@pytest.mark.parametrize("density", [0.3, 0.02])
def test_single_precision_finds_the_paths_of_double_precision(
    build: Callable[[], nn.Module], density: float
) -> None:
    network = build()
    chosen = prune(network, Random(), density=density, on_collapse="ignore")
    inputs = example_of(network, (3, 32, 32), None)
    single = Connectivity(network, inputs).effective(chosen)
    double = Connectivity(network.double(), tuple(x.double() for x in inputs)).effective(chosen)
    assert any(mask.any() for mask in single.values())
    assert all(torch.equal(single[name], mask) for name, mask in double.items())
