"""Random biases, gains, shifts and statistics, as training might leave them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synflow_pl import Masks


@torch.no_grad()
def randomize(network: nn.Module, masks: Masks, images: Tensor) -> None:
    """Randomise the biases, gains, shifts and statistics of a pruned network.

    Weights are scaled layer by layer, so that the part of a signal that depends on the input is as
    large as the constant part, however few weights are kept. Otherwise a constant would agree with
    the network. Statistics are those of the images with small random changes, because nothing
    would be folded with the statistics at initialisation.

    Args:
        network: Network, which is changed in place.
        masks: Masks of the network.
        images: Images to compute the statistics of.
    """
    masks.apply(network)
    handles = []

    def scale(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if layer not in seen:
            seen.add(layer)
            normalises = isinstance(layer, nn.modules.batchnorm._BatchNorm)
            deviation = output.std(0).max()
            if (
                deviation > 1e-9 * output.abs().max()
                and not normalises
                and layer.weight.requires_grad
            ):
                layer.weight.div_(deviation)
                output = output / deviation
            if layer.bias is not None:
                channel = (
                    1
                    if normalises or isinstance(layer, nn.modules.conv._ConvNd)
                    else output.dim() - 1
                )
                shift = torch.randn_like(layer.bias) / 3 - output.mean(
                    [dim for dim in range(output.dim()) if dim != channel]
                )
                layer.bias.copy_(shift)
                output = output + shift.view(
                    [-1 if dim == channel else 1 for dim in range(output.dim())]
                )
        return output

    seen: set[nn.Module] = set()
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and not isinstance(
            module, nn.modules.linear.NonDynamicallyQuantizableLinear
        ):
            if module.bias is not None:
                module.bias.zero_()
            handles.append(module.register_forward_hook(scale))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            module.reset_running_stats()
            module.weight.uniform_(0.5, 1.5)
            module.bias.zero_()
            handles.append(module.register_forward_hook(scale))
    network.train()(images)
    for handle in handles:
        handle.remove()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.add_(
                torch.randn_like(module.running_mean) * module.running_var.sqrt() / 5
            )
            # Variances are similar for all channels: a channel with a small variance would magnify
            # rounding from layer to layer.
            peak = float(module.running_var.max())
            module.running_var.fill_(peak if peak > 1e-9 else 1.0).mul_(
                torch.rand_like(module.running_var) + 0.5
            )
    masks.apply(network)


def spread(outputs: Tensor) -> float:
    """Return the largest standard deviation of an output over the batch."""
    return float(outputs.std(0).max())
