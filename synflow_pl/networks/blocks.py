"""Residual blocks: a branch of convolutions and a shortcut (He et al. 2016, Figure 5)."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Basic", "Bottleneck", "ResidualGain"]


class ResidualGain(nn.Conv2d):
    """A gain per channel on an identity shortcut, so that the shortcut can be pruned.

    The gains are one and not trained. The module is a depthwise 1x1 convolution, so that pruners,
    FLOP counts and exporters treat it as a convolution.

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=1, groups=channels, bias=False)
        self.weight.requires_grad_(False)

    def reset_parameters(self) -> None:
        """Set the gains to one."""
        nn.init.ones_(self.weight)


def _shortcut(channels: int, out: int, stride: int, gain: bool) -> nn.Module:
    """Return a shortcut: 1x1 convolution and BatchNorm if the shape changes, else the identity.

    With ``gain``, the identity is a :class:`ResidualGain`.
    """
    if stride != 1 or channels != out:
        return nn.Sequential(
            nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out)
        )
    return ResidualGain(channels) if gain else nn.Identity()


class Basic(nn.Module):
    """A residual block of two 3x3 convolutions.

    Args:
        channels: Number of input channels.
        out: Number of output channels of both convolutions.
        stride: Stride of the first convolution.
        gain: Whether an identity shortcut has a gain per channel.
    """

    def __init__(self, channels: int, out: int, stride: int, gain: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.shortcut = _shortcut(channels, out, stride, gain)

    def forward(self, signal: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(signal)))))
        out: Tensor = self.relu(branch + self.shortcut(signal))
        return out


class Bottleneck(nn.Module):
    """A residual block of a 1x1 convolution to fewer channels, a 3x3 and a 1x1 convolution.

    Args:
        channels: Number of input channels.
        inner: Number of output channels of the first two convolutions.
        out: Number of output channels.
        stride: Stride of the 3x3 convolution, as in torchvision and the SynFlow code. He et al.
            have it in the first convolution.
        gain: Whether an identity shortcut has a gain per channel.
    """

    def __init__(self, channels: int, inner: int, out: int, stride: int, gain: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.shortcut = _shortcut(channels, out, stride, gain)

    def forward(self, signal: Tensor) -> Tensor:
        branch = self.relu(self.bn1(self.conv1(signal)))
        branch = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(branch)))))
        out: Tensor = self.relu(branch + self.shortcut(signal))
        return out
