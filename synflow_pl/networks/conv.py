"""Conv: a few convolutions and one linear layer, the authors' default model `conv`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from synflow_pl.networks.sizes import check_sizes

__all__ = ["Conv"]


class Conv(nn.Module):
    """3x3 convolutions that keep the image's size, then a linear layer; initialised as PyTorch does
    (Kaiming uniform).

    Args:
        input_shape: (C, H, W).
        num_classes: logits out, at least 1.
        depth: convolutions, at least 1.
        width: channels of each convolution, at least 1.
        nonlinearity: pointwise module after each convolution.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        depth: int = 2,
        width: int = 32,
        nonlinearity: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        check_sizes(self, depth=depth, width=width, num_classes=num_classes)
        channels, height, wide = input_shape
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [
                nn.Conv2d(width if index else channels, width, kernel_size=3, padding=1),
                nonlinearity(),
            ]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(width * height * wide, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.layers(images)
        return logits
