"""What each network of the room must promise; new ones are found by themselves."""

import inspect

import pytest
import torch
from torch import nn

from synflow_pl import networks

NETWORKS = [getattr(networks, name) for name in networks.__all__]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_any_number_of_input_channels_becomes_one_logit_per_class(network: type[nn.Module], channels: int) -> None:
    module = network(input_shape=(channels, 32, 32), num_classes=7).eval()
    with torch.no_grad():
        logits = module(torch.randn(2, channels, 32, 32))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_seed_draws_the_same_weights_and_another_seed_others(network: type[nn.Module]) -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return {name: p.detach() for name, p in network().named_parameters() if p.dim() > 1}

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("network", NETWORKS)
def test_sizes_are_arguments_with_a_default(network: type[nn.Module]) -> None:
    parameters = inspect.signature(network).parameters
    assert {"input_shape", "num_classes", "depth"} <= set(parameters)
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters.values())


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_holds_nothing_but_parameters_and_the_statistics_of_its_normalisations(network: type[nn.Module]) -> None:
    module = network()
    kinds = {name.rpartition(".")[2] for name in module.state_dict()}
    assert kinds <= {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
