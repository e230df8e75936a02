"""Networks in which nothing is at rest: biases, gains, shifts and statistics as training might
leave them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synflow_pl import Masks


@torch.no_grad()
def randomize(network: nn.Module, masks: Masks, images: Tensor) -> None:
    """Draw biases, gains and shifts at random and scale layer by layer, so that what comes from the
    input stays of the size of what
    does not, however few weights are left: else a constant would pass for the network.

    Statistics are what the images give, moved a little: at initialisation nothing would ever be
        folded.
    """
    masks.apply(network)
    handles = []

    def scale(layer: nn.Module, _: tuple[Tensor, ...], made: Tensor) -> Tensor:
        if layer not in seen:
            seen.add(layer)
            normalises = isinstance(layer, nn.modules.batchnorm._BatchNorm)
            across = made.std(0).max()
            if across > 1e-9 * made.abs().max() and not normalises and layer.weight.requires_grad:
                layer.weight.div_(across)
                made = made / across
            if layer.bias is not None:
                channel = (
                    1
                    if normalises or isinstance(layer, nn.modules.conv._ConvNd)
                    else made.dim() - 1
                )
                shift = torch.randn_like(layer.bias) / 3 - made.mean(
                    [dim for dim in range(made.dim()) if dim != channel]
                )
                layer.bias.copy_(shift)
                made = made + shift.view([-1 if dim == channel else 1 for dim in range(made.dim())])
        return made

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
            # Nearly alike for all channels: the variance of one that hardly moves would magnify
            # rounding from layer to layer.
            peak = float(module.running_var.max())
            module.running_var.fill_(peak if peak > 1e-9 else 1.0).mul_(
                torch.rand_like(module.running_var) + 0.5
            )
    masks.apply(network)


def spread(outputs: Tensor) -> float:
    """How far an output moves over inputs: the largest deviation over the batch."""
    return float(outputs.std(0).max())
