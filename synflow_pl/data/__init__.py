"""Data sets as LightningDataModules, one data set per file."""

from synflow_pl.data.cifar10 import CIFAR10
from synflow_pl.data.cifar100 import CIFAR100
from synflow_pl.data.datamodule import ImageDataModule
from synflow_pl.data.digits import Digits
from synflow_pl.data.fashion_mnist import FashionMNIST
from synflow_pl.data.imagenet import ImageNet
from synflow_pl.data.mnist import MNIST
from synflow_pl.data.tiny_imagenet import TinyImageNet

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "Digits",
    "FashionMNIST",
    "ImageDataModule",
    "ImageNet",
    "TinyImageNet",
]
