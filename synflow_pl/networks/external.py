"""Networks of torchvision and timm, by name.

Both offer functions. The command line needs a class, whose arguments it can list, check and fill in
from the data; so these are classes whose ``__new__`` returns the library's own network, plain as it
is. There ``--help`` looks for their arguments too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

__all__ = ["Timm", "TorchVision"]

# They also return the logits of auxiliary classifiers in training, which no loss of one argument
# can read.
_AUXILIARY = ("googlenet", "inception_v3")


class TorchVision(nn.Module):
    """A classification network of torchvision; initialised as torchvision does."""

    def __new__(  # type: ignore[misc]  # a class on the command line, a function in truth
        cls,
        name: str,
        num_classes: int = 1000,
        input_shape: Sequence[int] = (3, 224, 224),
        weights: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        """The network.

        Args:
            name: as in ``torchvision.models.list_models(module=torchvision.models)``: "resnet50".
            num_classes: logits out, at least 1.
            input_shape: (3, H, W). Vision transformers are built for this size, and most take
                square images.
            weights: name of trained weights to download, "IMAGENET1K_V2" or "DEFAULT"; a classifier
                for another number of classes keeps its random start. For images of 224x224 as a
                rule, normalised as ``torchvision.models.get_model_weights(name)`` says.
            options: further arguments of torchvision's function.

        Raises:
            ValueError: for a name, weights or an input shape that there are not, or weights that do
                not fit the options.
        """
        from torchvision import models

        _known("TorchVision", name, models.list_models(module=models))
        if input_shape[0] != 3:
            raise ValueError(
                f"TorchVision: its networks read 3 channels, the data has {input_shape[0]}; use Timm, which takes any number"
            )
        given = dict(options or {})
        if name in _AUXILIARY:
            # What torchvision uses is said here: left unsaid, it warns of a default that may
            # change.
            given = {
                "aux_logits": False,
                "init_weights": True,
                "transform_input": weights is not None,
                **given,
            }
        if name.startswith("vit_"):
            given.setdefault("image_size", input_shape[1])
        elif name.startswith("maxvit_"):
            given.setdefault("input_size", tuple(input_shape[1:]))
        network = models.get_model(name, weights=None, num_classes=num_classes, **given)
        if weights is not None:
            offered = [weight.name for weight in models.get_model_weights(name)]
            if weights not in (*offered, "DEFAULT"):
                raise ValueError(
                    f"TorchVision: {name} has no weights {weights!r}; there are {', '.join(offered)}, and DEFAULT"
                )
            _transfer(name, models.get_model(name, weights=weights), network, num_classes)
        return network


def _transfer(name: str, trained: nn.Module, network: nn.Module, num_classes: int) -> None:
    """Copy all trained parameters and statistics, but for a classifier of another number of
    classes.
    """
    theirs, ours = trained.state_dict(), network.state_dict()
    for key, own in ours.items():
        if key in theirs and theirs[key].shape == own.shape:
            own.copy_(theirs[key])
        elif key not in theirs or own.shape != (num_classes, *theirs[key].shape[1:]):
            has = tuple(theirs[key].shape) if key in theirs else "not there"
            raise ValueError(
                f"TorchVision: {name}'s {key} is {tuple(own.shape)} with these options, in the weights it is {has}"
            )


class Timm(nn.Module):
    """A network of timm, the optional extra ``pip install synflow_pl[timm]``; initialised as timm
    does.
    """

    def __new__(  # type: ignore[misc]  # a class on the command line, a function in truth
        cls,
        name: str,
        num_classes: int = 1000,
        input_shape: Sequence[int] = (3, 224, 224),
        pretrained: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        """The network.

        Args:
            name: as in ``timm.list_models()``: "resnet50", or with the tag of its weights
                "resnet50.a1_in1k".
            num_classes: logits out, at least 1.
            input_shape: (C, H, W). Networks made for one size of image are built for this one.
            pretrained: download trained weights; a classifier for another number of classes keeps
                its random start.
            options: further arguments of ``timm.create_model`` ("drop_path_rate").

        Raises:
            ImportError: without timm.
            ValueError: for a name, or the tag of weights, that timm does not have.
        """
        try:
            import timm
        except ImportError as error:
            raise ImportError(
                f"Timm: {name!r} needs the package timm; pip install synflow_pl[timm]"
            ) from error

        _known("Timm", name, timm.list_pretrained() if "." in name else timm.list_models())
        given = {"in_chans": input_shape[0], **(options or {})}
        made_for = timm.get_pretrained_cfg(name)
        if made_for is not None and made_for.fixed_input_size:
            given.setdefault("img_size", tuple(input_shape[1:]))
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **given)


def _known(kind: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = get_close_matches(name, names, n=1, cutoff=0)[0]
        raise ValueError(f"{kind}: there is no network {name!r}; the nearest name is {near!r}")
