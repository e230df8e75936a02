"""Networks of torchvision and timm, by name.

Both libraries offer functions, but the command line needs classes to list, check and fill in their
arguments. :class:`TorchVision` and :class:`Timm` are therefore classes whose ``__new__`` returns
the library's network. ``--help`` reads the arguments from ``__new__`` as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

__all__ = ["Timm", "TorchVision"]

# In train mode these also return the logits of auxiliary classifiers, which losses do not expect.
_AUXILIARY = ("googlenet", "inception_v3")


class TorchVision(nn.Module):
    """A classification network of torchvision, with torchvision's initialisation.

    Example:
        >>> from synflow_pl.networks import TorchVision
        >>> network = TorchVision("resnet18", num_classes=10, input_shape=(3, 32, 32))
        >>> type(network).__name__, network.fc.out_features
        ('ResNet', 10)
    """

    def __new__(  # type: ignore[misc]  # a class on the command line, a function in truth
        cls,
        name: str,
        num_classes: int = 1000,
        input_shape: Sequence[int] = (3, 224, 224),
        weights: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        """Return a network of torchvision.

        Args:
            name: Name in ``torchvision.models.list_models(module=torchvision.models)``, for example
                "resnet50".
            num_classes: Number of logits, at least 1.
            input_shape: Shape (3, H, W) of an image. Vision transformers are built for this size,
                and most require square images.
            weights: Name of trained weights to download, for example "IMAGENET1K_V2" or "DEFAULT".
                A classifier for another number of classes keeps its random initialisation. Most
                weights are for images of 224x224, normalised as
                ``torchvision.models.get_model_weights(name)`` describes.
            options: Further arguments of torchvision's function.

        Raises:
            ValueError: If name, weights or input shape do not exist, or the weights do not fit the
                options.
        """
        from torchvision import models

        _known("TorchVision", name, models.list_models(module=models))
        if input_shape[0] != 3:
            raise ValueError(
                "TorchVision: its networks read 3 channels, the data has"
                f" {input_shape[0]}; use Timm, which takes any number"
            )
        arguments = dict(options or {})
        if name in _AUXILIARY:
            # torchvision warns that defaults may change unless these arguments are given.
            arguments = {
                "aux_logits": False,
                "init_weights": True,
                "transform_input": weights is not None,
                **arguments,
            }
        if name.startswith("vit_"):
            arguments.setdefault("image_size", input_shape[1])
        elif name.startswith("maxvit_"):
            arguments.setdefault("input_size", tuple(input_shape[1:]))
        network = models.get_model(name, weights=None, num_classes=num_classes, **arguments)
        if weights is not None:
            offered = [weight.name for weight in models.get_model_weights(name)]
            if weights not in (*offered, "DEFAULT"):
                raise ValueError(
                    f"TorchVision: {name} has no weights {weights!r}; there are"
                    f" {', '.join(offered)}, and DEFAULT"
                )
            _transfer(name, models.get_model(name, weights=weights), network, num_classes)
        return network


def _transfer(name: str, trained: nn.Module, network: nn.Module, num_classes: int) -> None:
    """Copy all trained parameters and buffers, except a classifier of another number of classes."""
    source = trained.state_dict()
    for key, tensor in network.state_dict().items():
        if key in source and source[key].shape == tensor.shape:
            tensor.copy_(source[key])
        elif key not in source or tensor.shape != (num_classes, *source[key].shape[1:]):
            shape = tuple(source[key].shape) if key in source else "not there"
            raise ValueError(
                f"TorchVision: {name}'s {key} is {tuple(tensor.shape)} with these options, in the"
                f" weights it is {shape}"
            )


class Timm(nn.Module):
    """A network of timm, with timm's initialisation.

    timm is an optional dependency: ``pip install ".[timm]"`` in a checkout of the repository.
    """

    def __new__(  # type: ignore[misc]  # a class on the command line, a function in truth
        cls,
        name: str,
        num_classes: int = 1000,
        input_shape: Sequence[int] = (3, 224, 224),
        pretrained: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        """Return a network of timm.

        Args:
            name: Name in ``timm.list_models()``, for example "resnet50", or with the tag of its
                weights "resnet50.a1_in1k".
            num_classes: Number of logits, at least 1.
            input_shape: Shape (C, H, W) of an image. Networks for a fixed image size are built for
                this size.
            pretrained: Whether to download trained weights. A classifier for another number of
                classes keeps its random initialisation.
            options: Further arguments of ``timm.create_model``, for example "drop_path_rate".

        Raises:
            ImportError: If timm is not installed.
            ValueError: If timm has no such name or tag of weights.
        """
        try:
            import timm
        except ImportError as error:
            raise ImportError(f"Timm: {name!r} needs the package timm; pip install timm") from error

        _known("Timm", name, timm.list_pretrained() if "." in name else timm.list_models())
        arguments = {"in_chans": input_shape[0], **(options or {})}
        made_for = timm.get_pretrained_cfg(name)
        if made_for is not None and made_for.fixed_input_size:
            arguments.setdefault("img_size", tuple(input_shape[1:]))
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **arguments)


def _known(kind: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = get_close_matches(name, names, n=1, cutoff=0)[0]
        raise ValueError(f"{kind}: there is no network {name!r}; the nearest name is {near!r}")
