"""Networks as plain modules, with their sizes as arguments."""

from synflow_pl.networks.conv import Conv
from synflow_pl.networks.external import Timm, TorchVision
from synflow_pl.networks.fc import FC
from synflow_pl.networks.resnet import ResNet
from synflow_pl.networks.tiny_resnet import TinyResNet
from synflow_pl.networks.tiny_vgg import TinyVGG
from synflow_pl.networks.vgg import VGG

__all__ = ["FC", "VGG", "Conv", "ResNet", "Timm", "TinyResNet", "TinyVGG", "TorchVision"]
