"""Residual blocks (He et al. 2016, Figure 5): a branch of convolutions beside a shortcut."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Basic", "Bottleneck", "ResidualGain"]


class ResidualGain(nn.Conv2d):
    """One gain per channel, one at first and not trained: what is there to prune of a shortcut that
    is the identity.

    It is a depthwise 1x1 convolution, so that whatever prunes, counts or exports convolutions knows
    what to do with it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=1, groups=channels, bias=False)
        self.weight.requires_grad_(False)

    def reset_parameters(self) -> None:
        """Set the gains to one."""
        nn.init.ones_(self.weight)


def _shortcut(channels: int, out: int, stride: int, gain: bool) -> nn.Module:
    """1x1 convolution and BatchNorm where the shape changes, else the identity, or its gain."""
    if stride != 1 or channels != out:
        return nn.Sequential(
            nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out)
        )
    return ResidualGain(channels) if gain else nn.Identity()


class Basic(nn.Module):
    """Two 3x3 convolutions.

    Args:
        channels: channels in.
        out: channels out, of both convolutions.
        stride: of the first convolution.
        gain: an identity shortcut has a gain per channel.
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
    """A 1x1 convolution that narrows, a 3x3 one, and a 1x1 one that widens again.

    Args:
        channels: channels in.
        inner: channels of the first two convolutions.
        out: channels out.
        stride: of the 3x3 convolution (He et al. have it in the first; torchvision and the authors
            of SynFlow here).
        gain: an identity shortcut has a gain per channel.
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
