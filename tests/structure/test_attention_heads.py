"""The heads of an attention are units: queries, keys, values and the columns that read them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from synflow_pl import Compaction, Masks, prune
from synflow_pl.flow import example_of
from synflow_pl.pruners import Magnitude, SynFlow
from synflow_pl.training.compacted import Compacted

WIDTH, HEADS, CHANNELS = 12, 4, 3


class Block(nn.Module):
    """Attention with a residual sum. Subclasses say how it gets queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.channels = HEADS, CHANNELS
        self.stem, self.norm = nn.Linear(5, WIDTH), nn.LayerNorm(WIDTH)
        self.out, self.head = nn.Linear(HEADS * CHANNELS, WIDTH), nn.Linear(WIDTH, 4)
        self.make()

    def make(self) -> None:
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * CHANNELS)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, words, _ = x.shape
        packed = self.qkv(x).reshape(batch, words, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return packed.unbind(0)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.attend(*self.split(self.norm(x))).transpose(1, 2)
        logits: Tensor = self.head((x + self.out(y.flatten(2))).mean(1))
        return logits


class Separate(Block):
    """Three projections, and the products written by hand."""

    def make(self) -> None:
        size = HEADS * CHANNELS
        self.q, self.k, self.v = (nn.Linear(WIDTH, size) for _ in range(3))

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        def of(layer: nn.Module) -> Tensor:
            projected: Tensor = layer(x)
            return projected.unflatten(-1, (-1, self.channels)).transpose(1, 2)

        return of(self.q), of(self.k), of(self.v)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(-2, -1) / self.channels**0.5).softmax(-1) @ value


class Merged(Separate):
    """Heads that are merged with the batch."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.flatten(0, 1) for x in (query, key, value))
        return torch.bmm(torch.bmm(query, key.mT).softmax(-1), value).unflatten(0, (-1, self.heads))


class Einsum(Separate):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = torch.einsum("bhqc,bhkc->bhqk", query, key).softmax(-1)
        return torch.einsum("bhqk,bhkc->bhqc", scores, value)


class Biased(Block):
    """A bias for each head, as in Swin."""

    def make(self) -> None:
        super().make()
        self.bias = nn.Parameter(torch.randn(HEADS, 6, 6))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=self.bias[None])


class Split(Block):
    """Queries, keys and values from ``split``, as in GPT-2."""

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = self.qkv(x).split(self.heads * self.channels, -1)
        return tuple(part.unflatten(-1, (-1, self.channels)).transpose(1, 2) for part in parts)


class Grouped(Separate):
    """Two queries share a head of keys and values."""

    def make(self) -> None:
        self.q = nn.Linear(WIDTH, HEADS * CHANNELS)
        self.k, self.v = (nn.Linear(WIDTH, HEADS * CHANNELS // 2) for _ in range(2))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (x[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for x in (key, value))
        return super().attend(query, key, value)


BLOCKS: list[Callable[[], Block]] = [Block, Separate, Merged, Einsum, Biased, Split, Grouped]
INPUT = torch.ones(1, 6, 5)


def network_of(kind: Callable[[], Block], heads: list[float]) -> Block:
    """Return a network whose heads have weights of some magnitudes."""
    torch.manual_seed(0)
    network = kind().double().eval()
    sizes = torch.tensor(heads, dtype=torch.float64).repeat_interleave(CHANNELS)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith(("qkv.", "q.")):
                rows = sizes.repeat(len(parameter) // len(sizes))
                parameter.mul_(rows[:, None] if parameter.dim() > 1 else rows)
        network.out.weight.mul_(sizes)
    return network


def pruned(network: Block) -> Masks:
    """Prune a network of :func:`network_of` by units until two of the four heads are left."""
    return prune(
        network,
        Magnitude(),
        granularity="unit",
        density=0.62,
        group_score="mean",
        example_input=INPUT,
    )


def slices(mask: Tensor, dim: int) -> list[set[bool]]:
    """Return the entries of a mask in the channels of each head."""
    count = mask.shape[dim] // CHANNELS
    return [set(part.flatten().tolist()) for part in mask.chunk(count, dim)]


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_smallest_heads_are_removed_from_all_projections(kind: Callable[[], Block]) -> None:
    network = network_of(
        kind, [0.01, 1.0, 0.01, 1.0] if kind is not Grouped else [0.01, 0.01, 1, 1]
    )
    masks = pruned(network)
    gone = {0, 2} if kind is not Grouped else {0, 1}
    expected = [{index not in gone} for index in range(HEADS)]
    assert slices(masks["out.weight"], 1) == expected
    if kind in (Block, Biased, Split):
        assert slices(masks["qkv.weight"], 0) == 3 * expected
    else:
        assert slices(masks["q.weight"], 0) == expected
        assert slices(masks["v.weight"], 0) == (expected if kind is not Grouped else expected[1:3])
        assert torch.equal(masks["k.weight"], masks["v.weight"])
    assert bool(masks["stem.weight"].all() and masks["head.weight"].all())


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_compacted_network_has_fewer_heads_and_the_same_outputs(
    kind: Callable[[], Block],
) -> None:
    network = network_of(kind, [0.01, 0.01, 1.0, 1.0])
    masks = pruned(network)
    compaction = Compaction(network, masks, example_of(network, None, INPUT))
    small = compaction.network
    assert small.heads == 2
    assert small.out.in_features == 2 * CHANNELS
    assert sum(p.numel() for n, p in small.named_parameters() if n in masks) == masks.kept
    images = torch.randn(3, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(small(images), network(images), rtol=1e-12, atol=1e-12)


def test_a_network_that_was_trained_with_fewer_heads_has_all_of_them_again() -> None:
    network = network_of(Block, [0.01, 0.01, 1.0, 1.0])
    masks = pruned(network)
    images = torch.randn(3, 6, 5, dtype=torch.float64)
    expected = network(images)
    compacted = Compacted(network, masks, example_of(network, None, INPUT))
    assert network.heads == 2
    compacted.restore()
    assert network.heads == HEADS
    torch.testing.assert_close(network(images), expected, rtol=1e-12, atol=1e-12)


def test_an_attention_that_needs_all_its_heads_stays_whole_and_is_named() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(5, WIDTH)
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            self.up, self.down = nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH)
            self.head = nn.Linear(WIDTH, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.attention(x, x, x, need_weights=False)[0]
            logits: Tensor = self.head((x + self.down(self.up(x).relu())).mean(1))
            return logits

    torch.manual_seed(0)
    network = Words().double().eval()
    masks = prune(network, SynFlow(), granularity="unit", density=0.5, example_input=INPUT)
    projections = slices(masks["attention.in_proj_weight"].any(1), 0)
    assert projections == 3 * slices(masks["attention.out_proj.weight"].any(0), 0)
    assert projections.count({False}) == 3
    assert projections.count({True}) == 3 * (HEADS - 1)
    compaction = Compaction(network, masks, example_of(network, None, INPUT))
    assert compaction.network.attention.num_heads == HEADS
    assert compaction.network.up.out_features == int(masks["up.weight"].any(1).sum())
    assert any("heads of MultiheadAttention" in note for note in compaction.notes)
    images = torch.randn(3, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(compaction.network(images), network(images))


def test_heads_that_no_pruning_removed_stay() -> None:
    network = network_of(Block, [1.0] * HEADS)
    masks = Masks({"out.weight": torch.rand(WIDTH, HEADS * CHANNELS) > 0.5})
    compaction = Compaction(network, masks, example_of(network, None, INPUT))
    assert compaction.network.heads == HEADS
    assert not compaction.attributes
