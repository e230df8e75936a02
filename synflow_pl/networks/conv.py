"""Conv: a few convolutions and one linear layer, the model ``conv`` of the SynFlow code."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from synflow_pl.networks.sizes import check_sizes

__all__ = ["Conv"]


class Conv(nn.Module):
    """3x3 convolutions that keep the image's size, followed by a linear layer.

    The initialisation is PyTorch's default (Kaiming uniform).

    Args:
        input_shape: Shape (C, H, W) of an image.
        num_classes: Number of logits, at least 1.
        depth: Number of convolutions, at least 1.
        width: Number of channels of each convolution, at least 1.
        nonlinearity: Class of the pointwise module after each convolution.

    Example:
        >>> import torch
        >>> from synflow_pl.networks import Conv
        >>> network = Conv(input_shape=(1, 28, 28), num_classes=10)
        >>> network(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
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
        channels, image_height, image_width = input_shape
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [
                nn.Conv2d(width if index else channels, width, kernel_size=3, padding=1),
                nonlinearity(),
            ]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(width * image_height * image_width, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images, (N, C, H, W)."""
        logits: Tensor = self.layers(images)
        return logits
