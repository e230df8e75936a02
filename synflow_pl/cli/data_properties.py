"""Read what commands need to know of the images of any LightningDataModule.

``input_shape`` (C, H, W) and ``num_classes`` are attributes of the data modules of this package.
Where another one has no ``input_shape``, the shape is that of the images of a training batch; its
number of classes is then the option ``model.num_classes``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from synflow_pl.cli.errors import import_class
from synflow_pl.data import ImageDataModule
from synflow_pl.pruners.batches import tensors_in

__all__ = ["DataProperties", "attach_data"]


class DataProperties:
    """Shape, classes and normalisation of the images of a data module.

    Args:
        options: Options of the subcommand.
        given_classes: Function that returns the option ``model.num_classes`` if it was given, else
            ``None``.
        data: The data module, if it has been built.
    """

    def __init__(
        self,
        options: Namespace,
        given_classes: Callable[[], int | None],
        data: LightningDataModule | None = None,
    ) -> None:
        self._options, self._given_classes, self._data = options, given_classes, data

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of an image.

        Raises:
            ValueError: If the data module does not have it, and a training batch cannot be read or
                has no tensor.
        """
        shape = self.declared("input_shape")
        return tuple(self._images.shape[1:] if shape is None else shape)

    @property
    def num_classes(self) -> int:
        """Number of classes.

        Raises:
            ValueError: If the data module does not have it, and the option was not given.
        """
        number = self.declared("num_classes")
        number = self._given_classes() if number is None else number
        if number is None:
            raise ValueError(
                f"model.num_classes: {self._name} has no attribute num_classes; give the number of"
                " its classes (--model.num_classes 10)"
            )
        return int(number)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation by which each channel of an image in [0, 1] is normalised.

        They are 0 and 1 for a data module that does not have ``mean`` and ``std``.
        """
        channels = self.input_shape[0]
        mean, std = self.declared("mean"), self.declared("std")
        return (
            tuple(mean) if mean is not None else (0.0,) * channels,
            tuple(std) if std is not None else (1.0,) * channels,
        )

    def declared(self, name: str) -> Any:
        """Return an attribute of the data module, or ``None`` if it does not have it.

        Args:
            name: Name of the attribute.
        """
        data = import_class(self._options.data.class_path)
        value = getattr(data, name, None)
        if isinstance(value, (int, tuple, list)) or issubclass(data, ImageDataModule):
            return value if isinstance(value, (int, tuple, list)) else None
        return getattr(self._built, name, None)

    @property
    def _name(self) -> str:
        return str(self._options.data.class_path)

    @cached_property
    def _built(self) -> LightningDataModule:
        if self._data is not None:
            return self._data
        parser = LightningArgumentParser()
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
        data: LightningDataModule = parser.instantiate_classes(
            Namespace(data=self._options.data)
        ).data
        return data

    @cached_property
    def _images(self) -> Tensor:
        """Images of the first training batch."""
        try:
            with isolate_rng():
                self._built.prepare_data()
                self._built.setup("fit")
                batch = next(iter(self._built.train_dataloader()))
            return next(tensors_in(batch))
        # A user's class may fail in any way before it is connected to a trainer.
        except Exception as error:
            raise ValueError(
                f"data: {self._name} has no attribute input_shape, and its first training batch"
                f" cannot be read ({type(error).__name__}: {error}); add the attribute, the shape"
                " (C, H, W) of an image"
            ) from error


def attach_data(
    trainer: Trainer, model: LightningModule, data: LightningDataModule, *, read: bool
) -> None:
    """Connect a data module to a trainer that does not train.

    Args:
        trainer: The trainer.
        model: The classifier.
        data: The data module. It is prepared if its images are read: if ``read`` is true, or if it
            has no attribute ``input_shape``.
        read: Whether images will be read.
    """
    trainer.strategy.connect(model)
    trainer._data_connector.attach_data(model, datamodule=data)
    if read or getattr(data, "input_shape", None) is None:
        data.prepare_data()
        if not isinstance(data, ImageDataModule):  # those set up themselves for pruning batches
            data.setup("fit")
