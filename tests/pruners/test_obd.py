from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from synflow_pl import prune
from synflow_pl.networks import ResNet
from synflow_pl.pruners import FisherOBD, HutchinsonOBD, Pruner
from synflow_pl.pruners.base import PruningState
from synflow_pl.pruners.batch_loss import as_batch_loss
from synflow_pl.pruners.forward import mean_batch_statistics
from tests.pruners.networks import half_square, scores


def line() -> nn.Module:
    """Return f(x) = w . x with w = (2, -1)."""
    network = nn.Linear(2, 1, bias=False)
    network.weight.data = torch.tensor([[2.0, -1.0]])
    return network


def test_fisher_obd_averages_the_squared_gradients_of_examples() -> None:
    # Errors are -2 and 1, gradients (-2, -6) and (1, 1), and their mean squares (2.5, 18.5).
    images, targets = torch.tensor([[1.0, 3.0], [1.0, 1.0]]), torch.tensor([1.0, 0.0])
    found = scores(FisherOBD(), line(), [(images, targets)], half_square)
    torch.testing.assert_close(found["weight"], torch.tensor([[5.0, 9.25]]))
    # How examples are divided into batches makes no difference.
    batches = [(images[:1], targets[:1]), (images[1:], targets[1:])]
    found = scores(FisherOBD(), line(), batches, half_square)
    torch.testing.assert_close(found["weight"], torch.tensor([[5.0, 9.25]]))


class Structured:
    """Loss of (network, batch) on dictionaries."""

    def __call__(self, network: Any, batch: Any) -> Tensor:
        return (network(batch["x"]).squeeze(1) - batch["t"]).square().mean() / 2


def test_batches_of_any_structure_are_split_into_examples_and_others_are_noted() -> None:
    batch: dict[str, Any] = {
        "x": torch.tensor([[1.0, 3.0], [1.0, 1.0]]),
        "t": torch.tensor([1.0, 0.0]),
    }
    pruner = FisherOBD()
    found = scores(pruner, line(), [batch], Structured())  # type: ignore[list-item]
    torch.testing.assert_close(found["weight"], torch.tensor([[5.0, 9.25]]))
    assert pruner.notes == ()
    # The gradient of the mean loss is (-0.5, -2.5), and its squares are (0.25, 6.25). A batch of
    # another size is weighted by it: three times (0.25, 6.25) + once (1, 1), by four.
    whole = [batch | {"name": "a"}]
    found = scores(pruner, line(), whole, Structured())  # type: ignore[arg-type]
    torch.testing.assert_close(found["weight"], torch.tensor([[0.5, 3.125]]))
    assert pruner.notes == (
        "squared gradients of whole batches, since these could not be split into examples",
    )
    one = {"x": torch.tensor([[1.0, 1.0]]), "t": torch.tensor([0.0]), "name": "b"}
    found = scores(pruner, line(), [*whole, one], Structured())  # type: ignore[list-item]
    torch.testing.assert_close(found["weight"], torch.tensor([[1.0, 4.5 / 2]]))


class EverySign(HutchinsonOBD):
    """Hutchinson's estimator with every vector of signs of four weights, once."""

    def __init__(self, **options: Any) -> None:
        super().__init__(samples=16, **options)
        self._vectors = iter(product((1, -1), repeat=4))

    def _signs(self, mask: Tensor) -> Tensor:
        # Called once for each of two layers of two weights.
        if mask.shape == (2, 1):
            self._vector = next(self._vectors)
            return torch.tensor(self._vector[:2]).view(2, 1) * mask
        return torch.tensor(self._vector[2:]).view(1, 2) * mask


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("removed", [False, True])
def test_hutchinson_obd_with_all_signs_is_the_diagonal_of_the_hessian(
    temperature: float, removed: bool
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    images, targets = torch.randn(5, 1).double(), torch.randn(5).double()
    names = ["0.weight", "2.weight"]
    masks = {
        "0.weight": torch.tensor([[True], [not removed]]),
        "2.weight": torch.ones(1, 2, dtype=torch.bool),
    }
    flat = torch.cat([(network.get_parameter(n).detach() * masks[n]).flatten() for n in names])

    def loss(weights: Tensor) -> Tensor:
        parts = {"0.weight": weights[:2].view(2, 1), "2.weight": weights[2:].view(1, 2)}
        outputs = functional_call(network, parts, (images,)) / temperature
        return half_square(outputs, targets)

    hessian = torch.autograd.functional.hessian(loss, flat)
    expected = flat.square() * hessian.diagonal() / 2
    pruner = EverySign(temperature=temperature)
    found = scores(pruner, network, [(images, targets)], half_square, masks=masks)
    torch.testing.assert_close(torch.cat([found[n].flatten() for n in names]), expected)
    assert removed or bool((expected < 0).any())


def test_random_signs_are_one_minus_one_and_zero_for_removed_weights() -> None:
    pruner = HutchinsonOBD(seed=0)
    scores(pruner, line(), [(torch.ones(1, 2), torch.ones(1))], half_square)
    mask = torch.ones(100, 100, dtype=torch.bool)
    mask[0] = False
    signs = pruner._signs(mask)
    assert set(signs[1:].unique().tolist()) == {-1, 1}
    assert not signs[0].any()
    assert abs(signs[1:].double().mean()) < 0.05
    assert not torch.equal(signs, pruner._signs(mask))


def test_hutchinson_obd_is_reproducible_and_exact_for_a_diagonal_hessian() -> None:
    # The inputs of the examples are (1, 0) and (0, 3), so H is diag(1, 9) / 2.
    batch = [(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.ones(2))]
    found = scores(HutchinsonOBD(samples=1, temperature=1.0), line(), batch, half_square)
    torch.testing.assert_close(found["weight"], torch.tensor([[1.0, 9 / 4]]))


def batches(dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(n, 3, 8, 8, generator=generator).to(dtype),
            torch.randint(0, 10, (n,), generator=generator),
        )
        for n in (6, 4)
    ]


def network() -> nn.Module:
    torch.manual_seed(0)
    return ResNet(8, width=4)


@pytest.mark.parametrize("structured", [False, True])
def test_statistics_are_means_over_batches_weighted_by_their_examples(structured: bool) -> None:
    model, data = network(), batches()
    state = PruningState.from_network(model)
    state.batches, state.loss = data, as_batch_loss(nn.functional.cross_entropy)
    if structured:
        state.batches = [{"x": x, "y": y} for x, y in data]
        state.loss = as_batch_loss(
            lambda network, batch: nn.functional.cross_entropy(network(batch["x"]), batch["y"])
        )
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    found = mean_batch_statistics(state, state.weights)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert momenta == [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert model.training
    expected: dict[str, Tensor] = {}
    for images, _ in data:
        other = network().train()
        for module in other.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        other(images)
        for name, buffer in other.named_buffers():
            if not name.endswith("num_batches_tracked"):
                expected[name] = expected.get(name, 0.0) + len(images) / 10 * buffer
    assert found.keys() == expected.keys()
    for name, statistic in found.items():
        torch.testing.assert_close(statistic, expected[name])


@pytest.mark.parametrize("pruner", [FisherOBD, HutchinsonOBD])
def test_warm_up_scores_as_if_the_running_statistics_were_those_of_the_batches(
    pruner: type[Pruner],
) -> None:
    data = batches()
    found = scores(pruner(), network(), data)
    state = PruningState.from_network(network())
    state.batches = data
    warm = network()
    warm.load_state_dict(mean_batch_statistics(state, state.weights), strict=False)
    expected = scores(pruner(warmup=False), warm, data)  # type: ignore[call-arg]
    for name, score in found.items():
        torch.testing.assert_close(score, expected[name], rtol=1e-4, atol=1e-9)
    cold = scores(pruner(warmup=False), network(), data)  # type: ignore[call-arg]
    assert not torch.allclose(cold["fc.weight"], found["fc.weight"], rtol=0.1)


@pytest.mark.parametrize("pruner", [FisherOBD, HutchinsonOBD])
def test_train_mode_is_an_error(pruner: type[Pruner]) -> None:
    with pytest.raises(ValueError, match=f"train_mode: True, but {pruner.__name__} scores in eval"):
        prune(network(), pruner(), density=0.5, batches=batches(), train_mode=True)


def test_impossible_options_of_hutchinson_obd_are_an_error() -> None:
    with pytest.raises(ValueError, match="samples: 0 must be at least 1"):
        HutchinsonOBD(samples=0)
    with pytest.raises(ValueError, match=r"temperature: 0\.0 must be positive"):
        HutchinsonOBD(temperature=0.0)
