"""Forms of forward(): noise, integers, writes in place, custom autograd functions, spectra."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

from synflow_pl import Masks, prune
from synflow_pl.flow import Connectivity, linearise
from synflow_pl.pruners import SynFlow


class Net(nn.Module):
    """Two layers with an activation each and a third one, with or without a shortcut."""

    def __init__(self, activation: Callable[[Tensor], Tensor], shortcut: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.activation, self.shortcut = activation, shortcut

    def forward(self, x: Tensor) -> Tensor:
        first = self.activation(self.a(x))
        second = self.activation(self.b(first))
        return self.c(first + second if self.shortcut else second)


def gradients(activation: Callable[[Tensor], Tensor], shortcut: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = Net(activation, shortcut).double()
    linear_network = linearise(network, (torch.ones(2, 6, dtype=torch.float64),))
    assert linear_network.unknown({}) == {}
    parameters = dict(network.named_parameters())
    return linear_network.gradients(
        {name: parameters[name].detach().abs() for name in linear_network.weights}
    )


def same_flow(activation: Callable[[Tensor], Tensor]) -> None:
    """Assert that the flow through an activation is the flow through a ReLU."""
    for shortcut in (False, True):
        actual, right = gradients(activation, shortcut), gradients(F.relu, shortcut)
        for name in right:
            torch.testing.assert_close(actual[name], right[name], rtol=1e-12, atol=0)


def share(x: Tensor) -> Tensor:
    return torch.rand(2, 1, dtype=x.dtype)


NOISE: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout in place": lambda x: F.dropout(x.clone(), 0.3, inplace=True),
    "dropout of features": lambda x: F.dropout2d(x[..., None, None], 0.3)[..., 0, 0],
    "fused dropout": lambda x: torch.native_dropout(x, 0.3, True)[0],
    "gaussian dropout": lambda x: x * (1 + 0.2 * torch.randn_like(x)),
    "added": lambda x: x + torch.randn_like(x),
    "added in place": lambda x: x + torch.empty_like(x).normal_(),
    "drawn around the signal": lambda x: torch.normal(x, 0.1),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)) / 0.5,
    "rarely kept": lambda x: x * (torch.rand(2, 1) < 0.25) / 0.25,
    "rounded": lambda x: x / 0.25 * torch.floor(0.25 + share(x)),
    "where": lambda x: (
        torch.where(torch.rand_like(x) < 0.25, x, torch.zeros((), dtype=x.dtype)) / 0.25
    ),
    "filled": lambda x: x.masked_fill(torch.rand_like(x) < 0.75, 0) / 0.25,
    "uniform": lambda x: x * torch.empty_like(x).uniform_(0.5, 1.5),
    "randomised slope": lambda x: F.rrelu(x, training=True),
    "shuffled": lambda x: x[torch.randperm(2)],
    "of mean zero": lambda x: x * torch.randn(1, dtype=x.dtype),
    "stochastic depth": lambda x: torchvision.ops.stochastic_depth(x, 0.4, "row", True),
    "sampled": lambda x: torch.bernoulli(torch.sigmoid(x)),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "alpha dropout by its operation": lambda x: torch.alpha_dropout(input=x, p=0.3, train=True),
    "alpha dropout in place": lambda x: F.alpha_dropout(
        x.clone(), 0.3, training=True, inplace=True
    ),
    "alpha dropout of features": lambda x: F.feature_alpha_dropout(x, 0.3, training=True),
    "gumbel": lambda x: x - torch.log(-torch.log(torch.rand_like(x))),
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_that_is_on_in_eval_mode_is_the_identity_on_flow(name: str) -> None:
    same_flow(NOISE[name])


@pytest.mark.parametrize("name", ["dropout", "rarely kept", "stochastic depth", "gaussian dropout"])
def test_masks_do_not_depend_on_the_seed_of_noise(name: str) -> None:
    actual: list[Masks] = []
    torch.manual_seed(0)
    dense = Net(NOISE[name], shortcut=True)
    for seed in (1, 2):
        torch.manual_seed(seed)
        actual.append(
            prune(
                copy.deepcopy(dense),
                SynFlow(),
                density=0.2,
                rounds=10,
                example_input=torch.ones(2, 6),
            )
        )
    assert all(torch.equal(actual[0][key], actual[1][key]) for key in actual[0])


def test_a_forward_pass_that_branches_on_a_random_number_is_refused() -> None:
    def skip(x: Tensor) -> Tensor:
        return x if torch.rand(1).item() < 0.5 else F.relu(x)

    with pytest.raises(ValueError, match="decides by a random number"):
        gradients(skip, shortcut=True)


def halved(x: Tensor) -> Tensor:
    count = torch.tensor(0)
    return while_loop(
        lambda index, _: index < 3, lambda index, y: (index + 1, y * 1.0), (count, x)
    )[1]


@pytest.mark.parametrize(
    "activation",
    [
        lambda x: torch.cond(x.sum() > 0, lambda y: y.relu(), lambda y: y.tanh(), (x,)),
        lambda x: torch.cond(torch.tensor(False), lambda y: y * 7, lambda y: y.tanh(), (x,)),
        halved,
        lambda x: torch.vmap(lambda row: row.relu())(x),
    ],
)
def test_flow_passes_through_the_function_that_a_higher_order_operator_calls(
    activation: Callable[[Tensor], Tensor],
) -> None:
    same_flow(activation)


def test_weights_in_the_branch_that_runs_are_scored() -> None:
    class Chooses(Net):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x).relu()
            return self.c(
                torch.cond(hidden.sum() >= 0, lambda y: self.b(y), lambda y: y, (hidden,))
            )

    torch.manual_seed(0)
    pruner = SynFlow()
    masks = prune(Chooses(F.relu, False), pruner, density=0.3, rounds=4, input_shape=(6,))
    assert 0 < int(masks["b.weight"].sum()) < masks["b.weight"].numel()
    assert not any("no flow" in note for note in pruner.notes)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_an_unsupported_higher_order_operator_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"^forward\(\) calls the higher-order operator flex_attention, whose operations cannot"
            " be recorded"
        ),
    ):
        gradients(
            lambda x: flex_attention(
                x.view(2, 1, 1, 8), x.view(2, 1, 1, 8), x.view(2, 1, 1, 8)
            ).view(2, 8),
            shortcut=False,
        )


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "x > 0": lambda x: (x > 0).to(x.dtype),
    "not x <= 0": lambda x: 1 - (x <= 0).to(x.dtype),
    "where": lambda x: torch.where(x > 0, 1.0, 0.0).to(x.dtype),
    "window": lambda x: ((x > -1) & (x < 1)).to(x.dtype),
    "filled": lambda x: torch.zeros_like(x).masked_fill(x > 0, 1.0),
    "sign": torch.sign,
    "heaviside": lambda x: torch.heaviside(x, x.new_zeros(())),
    "clamp": lambda x: x.clamp(0, 1),
    "int8": lambda x: (x * 16).to(torch.int8).to(x.dtype) / 16,
    "buckets": lambda x: torch.bucketize(x, torch.linspace(-1, 1, 5, dtype=x.dtype)).to(x.dtype),
    "straight through": lambda x: x + (x.round() - x).detach(),
    "relu by a product": lambda x: x * (x > 0),
    "relu by a choice": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "relu by an index": lambda x: _set(x.clone(), x < 0),
    "fake quantisation": lambda x: torch.fake_quantize_per_tensor_affine(
        x.float(), 0.1, 0, -128, 127
    ).double(),
}


def _set(y: Tensor, at: Tensor) -> Tensor:
    y[at] = 0
    return y


@pytest.mark.parametrize("name", STEPS)
def test_a_pointwise_function_through_booleans_or_integers_is_the_identity_on_flow(
    name: str,
) -> None:
    same_flow(STEPS[name])


def _slices(x: Tensor) -> Tensor:
    y = x.new_empty(x.shape)
    y[:, :4] = x[:, :4]
    y[:, 4:].copy_(x[:, 4:])
    return y


def _chunks(x: Tensor) -> Tensor:
    y = x.clone()
    left, right = y.chunk(2, 1)
    left.relu_()
    right.mul_(1.0)
    return y


def _nested(x: Tensor) -> Tensor:
    y = torch.zeros(2, 2, 4, dtype=x.dtype)
    y[0].view(-1)[:8].copy_(x[0])
    y[1].unsqueeze(0).view(2, 4)[:] = x[1].view(2, 4)
    return y.view(2, 8)


def _transposed(x: Tensor) -> Tensor:
    y = torch.zeros(8, 2, dtype=x.dtype)
    y.t().add_(x)
    return y.t()


def _rows(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    for row, given in zip(y.unbind(0), x, strict=True):
        row.copy_(given)
    return y


def _diagonal(x: Tensor) -> Tensor:
    y = torch.zeros(2, 8, 8, dtype=x.dtype)
    torch.diagonal(y, dim1=1, dim2=2).copy_(x)
    return y.sum(2)


def _buffer(x: Tensor) -> Tensor:
    y = torch.zeros(2, 16, dtype=x.dtype)
    y[:, :8] = x
    return torch.roll(y, 8, 1)[:, 8:]


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "slices": _slices,
    "chunks": _chunks,
    "nested views": _nested,
    "transposed": _transposed,
    "rows": _rows,
    "diagonal": _diagonal,
    "rolling buffer": _buffer,
    "out=": lambda x: torch.add(x, 0, out=torch.empty_like(x)),
    "scatter": lambda x: torch.zeros_like(x).scatter_(1, torch.arange(8).expand(2, 8), x),
    "index": lambda x: torch.zeros_like(x).index_put_((torch.arange(2),), x),
    "circular padding": lambda x: F.pad(x[:, None], (1, 1), mode="circular")[:, 0, 1:-1],
    "checkpoint": lambda x: checkpoint(F.relu, x, use_reentrant=False),
}


@pytest.mark.parametrize("name", WRITES)
def test_flow_passes_through_writes_in_place(name: str) -> None:
    same_flow(WRITES[name])


class Old(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class WithSetup(Old):
    @staticmethod
    def forward(x: Tensor) -> Tensor:  # type: ignore[override]
        return x.sign()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


class Dirty(Old):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        x.relu_()
        ctx.mark_dirty(x)
        return x


class Several(Old):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:  # type: ignore[override]
        largest = x.argmax()
        ctx.mark_non_differentiable(largest)
        return x.clamp(min=0), x > 0, largest, None


@pytest.mark.parametrize(
    "activation",
    [Old.apply, WithSetup.apply, Dirty.apply, lambda x: Several.apply(x)[0]],
    ids=range(4),
)
def test_a_custom_autograd_function_is_traced_through_its_forward(
    activation: Callable[[Tensor], Tensor],
) -> None:
    same_flow(activation)


class Entering(nn.Module):
    """Two layers that read the input after ``enter`` has converted it to floating point."""

    def __init__(self, enter: nn.Module | Callable[..., Tensor], width: int) -> None:
        super().__init__()
        self.enter, self.a, self.b = enter, nn.Linear(width, 8), nn.Linear(8, 4)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.b(F.relu(self.a(self.enter(*inputs))))


WHOLE: dict[str, tuple[Callable[..., Tensor], int, tuple[Tensor, ...]]] = {
    "one-hot": (lambda x: F.one_hot(x, 20).float(), 20, (torch.randint(20, (2, 7)),)),
    "bytes": (
        lambda x: x.flatten(1).float() / 255,
        12,
        (torch.randint(256, (2, 3, 2, 2), dtype=torch.uint8),),
    ),
    "divided": (lambda x: x.flatten(1) / 255, 12, (torch.randint(256, (2, 3, 2, 2)),)),
    "truth values": (lambda x: x.float(), 5, (torch.rand(2, 5) > 0.5,)),
    "embedding": (nn.Embedding(20, 6), 6, (torch.randint(20, (2, 7)),)),
    "bags": (nn.EmbeddingBag(20, 6), 6, (torch.randint(20, (12,)), torch.tensor([0, 5, 9]))),
    "rows of a table": (lambda x: torch.ones(20, 6)[x], 6, (torch.randint(20, (2, 7)),)),
    "a choice": (lambda x: torch.where(x > 3, 1.0, -1.0), 7, (torch.randint(20, (2, 7)),)),
    "counted": (
        lambda x: torch.stack([x.eq(k).sum(1) for k in range(4)], 1).float(),
        4,
        (torch.randint(4, (2, 7)),),
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_flow_starts_where_integers_become_floating_point(name: str) -> None:
    enter, width, inputs = WHOLE[name]
    network = Entering(enter, width)
    masks = prune(network, SynFlow(), density=0.2, rounds=3, example_input=inputs)
    assert masks.kept == masks.total - int(0.8 * masks.total)
    assert Connectivity(network, inputs).is_connected(masks)


def test_flow_passes_a_packed_sequence() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.rnn, self.b = (
                nn.Linear(4, 8),
                nn.GRU(8, 8, batch_first=True),
                nn.Linear(8, 5),
            )

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(self.a(x), lengths, batch_first=True)
            return self.b(
                nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]
            )

    torch.manual_seed(0)
    network, inputs = Packed(), (torch.randn(2, 7, 4), torch.tensor([7, 4]))
    linear_network = linearise(network, inputs)
    assert linear_network.weights == {
        "a.weight",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
        "b.weight",
    }
    assert linear_network.unknown({}) == {}


def test_circular_padding_keeps_flow_uniform() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ).double()
    linear_network = linearise(network, (torch.ones(1, 3, 5, 5, dtype=torch.float64),))
    linear_network._cut_before = {}
    first, last = (network[place].weight.detach().abs() for place in (0, 2))
    actual = linear_network.gradients({"0.weight": first, "2.weight": last})
    by_unit = 25 * last.sum((0, 2, 3))
    torch.testing.assert_close(
        actual["0.weight"], by_unit[:, None, None, None].expand_as(first), rtol=1e-12, atol=0
    )


class Fourier(nn.Module):
    """A layer of a Fourier neural operator: products in the lowest modes of the spectrum."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.mix, self.written = nn.Parameter(torch.randn(6, 6, 4, dtype=torch.cfloat) / 6), written

    def forward(self, h: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(h)
        modes = torch.einsum("bix,iox->box", spectrum[..., :4], self.mix)
        if self.written:
            whole = torch.zeros_like(spectrum)
            whole[..., :4] = modes
            modes = whole
        return torch.fft.irfft(modes, n=h.shape[-1])


class Operator(nn.Module):
    def __init__(self, written: bool, gain: bool) -> None:
        super().__init__()
        if gain:
            self.gain = nn.Parameter(torch.ones(1, dtype=torch.cfloat))
        self.up, self.spectral, self.down = nn.Linear(1, 6), Fourier(written), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.spectral(self.up(x).transpose(1, 2))).transpose(1, 2))


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("gain", [False, True])
def test_real_layers_around_a_fourier_layer_are_pruned(written: bool, gain: bool) -> None:
    torch.manual_seed(0)
    network = Operator(written, gain)
    pruner = SynFlow()
    masks = prune(network, pruner, density=0.5, rounds=3, input_shape=(16, 1))
    assert masks.kept == masks.total - int(0.5 * masks.total)
    assert not any("without a rule" in note for note in pruner.notes)


def test_flow_through_a_fourier_transform_equals_flow_through_its_matrix() -> None:
    torch.manual_seed(0)
    matrix = torch.fft.fft(torch.eye(6, dtype=torch.float64), norm="ortho").abs()

    class Transform(nn.Module):
        def __init__(self, plain: bool) -> None:
            super().__init__()
            self.a, self.b, self.plain = nn.Linear(4, 6), nn.Linear(6, 3), plain

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x)
            return self.b(
                hidden @ matrix if self.plain else torch.fft.fft(hidden, norm="ortho").abs()
            )

    actual = []
    for plain in (True, False):
        torch.manual_seed(0)
        network = Transform(plain).double()
        linear_network = linearise(network, (torch.ones(2, 4, dtype=torch.float64),))
        linear_network._cut_before = {}
        actual.append(
            linear_network.gradients(
                {
                    name: network.get_parameter(name).detach().abs()
                    for name in linear_network.weights
                }
            )
        )
    for name in ("a.weight", "b.weight"):
        torch.testing.assert_close(actual[1][name], actual[0][name], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "front",
    [
        lambda x: torch.stft(x, 16, 8, window=torch.ones(16), return_complex=True).abs(),
        lambda x: (
            torch.view_as_real(torch.stft(x, 16, 8, window=torch.ones(16), return_complex=True))
            .pow(2)
            .sum(-1)
        ),
        lambda x: torch.fft.fft2(x.reshape(2, 1, 8, 16)).real[:, 0, :, :].repeat(1, 2, 1)[:, :9],
        lambda x: torch.view_as_complex(x.reshape(2, 8, 8, 2)).angle().repeat(1, 2, 2)[:, :9],
        lambda x: torch.polar(x, x).imag.reshape(2, 8, 16).repeat(1, 2, 1)[:, :9],
    ],
    ids=["stft", "power", "fft2", "pairs", "polar"],
)
def test_a_network_behind_a_spectrogram_is_pruned(front: Callable[[Tensor], Tensor]) -> None:
    class Speech(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(9, 8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(front(x))).mean(-1))

    torch.manual_seed(0)
    network, inputs = Speech(), (torch.randn(2, 128),)
    pruner = SynFlow()
    masks = prune(network, pruner, density=0.3, rounds=2, example_input=inputs)
    assert masks.kept == masks.total - int(0.7 * masks.total)
    assert Connectivity(network, inputs).is_connected(masks)
    assert not any("without a rule" in note for note in pruner.notes)
