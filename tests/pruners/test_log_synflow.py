from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from synflow_pl import prune
from synflow_pl.networks import ResNet
from synflow_pl.pruners import LogSynFlow, SynFlow
from tests.pruners.networks import scores


def chain(*weights: float) -> nn.Sequential:
    """Return a network of layers of one weight each."""
    layers = [nn.Linear(1, 1, bias=False) for _ in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight.data.fill_(weight)
    return nn.Sequential(*layers)


def listed(found: dict[str, Tensor]) -> list[float]:
    return [float(score) for score in found.values()]


def test_log_synflow_is_the_magnitude_times_the_logarithm_of_one_plus_the_gradient() -> None:
    # R = 2 * 3 with derivatives 3 and 2 by the magnitudes.
    found = listed(scores(LogSynFlow(), chain(2.0, -3.0), input_shape=(1,)))
    assert found == pytest.approx([2 * math.log(4), 3 * math.log(3)], rel=1e-6)


def test_log_synflow_is_synflow_with_logarithms_across_cuts() -> None:
    # The flow of ResNet-20 is divided by powers of two, which the logarithm has to undo.
    torch.manual_seed(0)
    network = ResNet(20, width=4).double()
    expected = scores(SynFlow(), network, input_shape=(3, 8, 8))
    found = scores(LogSynFlow(), network, input_shape=(3, 8, 8))
    # SynFlow's scores are |w| g / 2^k. The flow of the whole network, without cuts, gives k.
    weights = {name: network.get_parameter(name).detach().abs() for name in expected}
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
            for parameter in module.parameters(recurse=False):
                parameter.abs_()
        total = network.eval()(torch.ones(1, 3, 8, 8, dtype=torch.float64))
        total = (total - network.fc.bias).sum()
    # Each path passes the last layer once, so that its scores add up to the flow.
    scale = total / expected["fc.weight"].sum()
    for name, score in expected.items():
        logarithm = (score * scale / weights[name]).log1p()
        torch.testing.assert_close(found[name], weights[name] * logarithm, rtol=1e-4, atol=0.0)


def test_log_synflow_does_not_overflow() -> None:
    # R = 10^200, and float32 ends at about 10^38. Each derivative is 10^199.
    found = listed(scores(LogSynFlow(), chain(*[10.0] * 200), input_shape=(1,)))
    assert found == pytest.approx([10 * 199 * math.log(10)] * 200, rel=1e-5)


def test_log_synflow_is_synflow_up_to_a_factor_if_the_flow_is_too_small_for_a_logarithm() -> None:
    # R = 10^-60 / 4. For tiny gradients g the logarithm of 1 + g is g, so all scores are R.
    found = listed(scores(LogSynFlow(), chain(*[0.1] * 59, 0.05, 0.5), input_shape=(1,)))
    assert found == pytest.approx([found[0]] * 61, rel=1e-5)
    assert 0.01 < found[0] < 1


def test_log_synflow_refuses_automatic_rounds() -> None:
    with pytest.raises(ValueError, match="and those of LogSynFlow are not"):
        prune(chain(1.0, 1.0), LogSynFlow(), num_kept=2, rounds="auto", input_shape=(1,))


def test_log_synflow_without_a_path_is_an_error() -> None:
    class Dead(LogSynFlow):
        def score(self, state):  # type: ignore[no-untyped-def]
            for name in ("0.weight", "1.weight"):
                state.weights[name].zero_()
            return super().score(state)

    with pytest.raises(ValueError, match="every score of Dead is zero"):
        prune(chain(1.0, 1.0, 1.0), Dead(), num_kept=1, input_shape=(1,))
