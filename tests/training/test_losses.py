"""A data-driven pruner uses the loss of the module, or an error asks for the option."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from test_prune_at_init import trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassHingeLoss

from synflow_pl import Classifier, PruneAtInit, prune
from synflow_pl.networks import FC
from synflow_pl.pruners import FORCE, SNIP, GraSP, Magnitude, SynFlow
from synflow_pl.training.introspection import find_loss


class Task(LightningModule):
    """Regression with the loss in its training step, and with the attributes that a test adds."""

    def __init__(self, outputs: int = 3, **attributes: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, outputs))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.network(features)
        return outputs

    def training_step(self, batch: Any, _: int) -> Tensor:
        return functional.mse_loss(self(batch[0]).squeeze(1), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def labels_of(features: Tensor, outputs: int) -> Tensor:
    return 10 * features[:, :outputs] + 5


def masks_of(folder: Path, module: Task, callback: PruneAtInit, labels: Any = None) -> Any:
    features = torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    outputs = module.network[2].out_features  # type: ignore[union-attr]
    data = TensorDataset(
        features, labels_of(features, outputs) if labels is None else labels(features)
    )
    run = trainer(folder, callback, max_epochs=1, limit_train_batches=1, enable_checkpointing=False)
    run.fit(module, DataLoader(data, batch_size=64))
    return callback.masks


def expected(module: Task, loss: Any, pruner: Any) -> Any:
    features = torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    outputs = module.network[2].out_features  # type: ignore[union-attr]
    batch = (features, labels_of(features, outputs))
    network = copy.deepcopy(module.network)
    return prune(
        network, pruner, density=0.2, example_input=features[:1], batches=[batch], loss=loss
    )  # type: ignore[arg-type]


class WithMethod(Task):
    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.l1_loss(outputs, labels)


class WithStaticMethod(Task):
    @staticmethod
    def criterion(outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.l1_loss(outputs, labels)


@pytest.mark.parametrize("name", ["loss", "criterion", "loss_fn", "loss_function"])
@pytest.mark.parametrize(
    "loss",
    [nn.L1Loss(), functional.l1_loss, partial(functional.smooth_l1_loss, beta=0.5)],
    ids=["module", "function", "partial"],
)
def test_a_loss_is_used_under_each_attribute_name(tmp_path: Path, name: str, loss: Any) -> None:
    module = Task(**{name: loss})
    right = expected(module, loss, SNIP())
    masks = masks_of(tmp_path, module, PruneAtInit(SNIP(), density=0.2))
    assert all(torch.equal(masks[key], right[key]) for key in right)


@pytest.mark.parametrize(
    "pruner", [SNIP(), GraSP(), FORCE()], ids=lambda pruner: type(pruner).__name__
)
@pytest.mark.parametrize("kind", [WithMethod, WithStaticMethod])
def test_a_loss_that_is_a_method_is_used(tmp_path: Path, kind: Any, pruner: Any) -> None:
    module = kind()
    right = expected(module, nn.L1Loss(), pruner)
    masks = masks_of(tmp_path, module, PruneAtInit(pruner, density=0.2, on_collapse="warn"))
    assert all(torch.equal(masks[key], right[key]) for key in right)


def test_the_loss_option_takes_precedence_over_attributes(tmp_path: Path) -> None:
    for module in (Task(), Task(loss=nn.MSELoss())):
        right = expected(module, nn.L1Loss(), SNIP())
        masks = masks_of(tmp_path, module, PruneAtInit(SNIP(), density=0.2, loss=nn.L1Loss()))
        assert all(torch.equal(masks[key], right[key]) for key in right)


def test_a_loss_function_may_reshape_outputs(tmp_path: Path) -> None:
    module = Task(1)
    loss: Any = lambda outputs, labels: functional.mse_loss(outputs.squeeze(1), labels)  # noqa: E731
    callback = PruneAtInit(SNIP(), density=0.2, loss=loss)
    right = expected(module, nn.MSELoss(), SNIP())
    masks = masks_of(
        tmp_path, module, callback, labels=lambda features: labels_of(features, 1).squeeze(1)
    )
    assert all(torch.equal(masks[key], right[key]) for key in right)


class OfImages(Task):
    """Module with a method ``loss`` whose first argument is the input."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return functional.mse_loss(self(images[:, :1].expand(-1, 20)), labels)


class OfBatch(Task):
    def loss(self, batch: Any, index: Any) -> Tensor:
        features, labels = batch
        return functional.mse_loss(features, labels)


class OfOne(Task):
    def loss(self, batch: Any) -> Tensor:
        return functional.mse_loss(self(batch[0]), batch[1])


class Several(Task):
    def __init__(self) -> None:
        super().__init__(criterion=nn.MSELoss(), loss_fn=nn.L1Loss())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Task,
            "Task has no attribute loss, criterion, loss_fn, loss_function that is a loss of two",
        ),
        (lambda: Task(loss=torch.tensor(1.0)), "loss of Task is no loss of two arguments"),
        (lambda: Task(loss=0.5), "loss of Task is no loss"),
        (lambda: Task(loss=MeanMetric()), "loss of Task is no loss"),
        (lambda: Task(criterion=MulticlassHingeLoss(3)), "criterion of Task is no loss"),
        (
            lambda: Task(criterion=nn.TripletMarginLoss()),
            "criterion of Task is no loss of two arguments",
        ),
        (lambda: Task(loss_fn=nn.MSELoss), "loss_fn of Task is no loss"),
        (
            lambda: Task(criterion=nn.MSELoss(reduction="none")),
            "criterion of Task is no loss of two arguments and one number",
        ),
        (OfOne, "loss of OfOne is no loss of two arguments"),
        (
            OfImages,
            r"loss\(\) of OfImages is no loss of the network's outputs and labels, since it runs",
        ),
        (OfBatch, r"loss\(\) of OfBatch is no loss of the network's outputs and labels"),
        (Several, "Several has several losses, criterion, loss_fn, and the pruner scores by one"),
    ],
    ids=range(12),
)
def test_a_missing_or_ambiguous_loss_is_an_error_that_asks_for_the_option(
    tmp_path: Path, module: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"{message}.*give PruneAtInit loss="):
        masks_of(tmp_path, module(), PruneAtInit(SNIP(), density=0.2))


def test_a_loss_that_would_broadcast_labels_is_refused(tmp_path: Path) -> None:
    callback = PruneAtInit(SNIP(), density=0.2)
    with pytest.raises(
        ValueError,
        match="the loss of Task compares outputs and labels of different shapes; give PruneAtInit",
    ):
        masks_of(
            tmp_path,
            Task(1, criterion=nn.MSELoss()),
            callback,
            labels=lambda features: features[:, 0],
        )


def test_metrics_and_tensors_do_not_count_as_losses() -> None:
    criterion = nn.MSELoss()
    assert find_loss(Task(loss=MeanMetric(), criterion=criterion)) is criterion
    assert find_loss(Task(loss=torch.tensor(0.0), loss_fn=criterion)) is criterion
    assert find_loss(Task(loss=criterion, loss_fn=criterion)) is criterion
    classifier = Classifier(FC((1, 2, 4), depth=3, width=16))
    assert find_loss(classifier) is classifier.loss


@pytest.mark.parametrize("pruner", [SynFlow(), Magnitude()], ids=["synflow", "magnitude"])
def test_a_data_free_pruner_needs_no_loss(tmp_path: Path, pruner: Any) -> None:
    callback = PruneAtInit(pruner, density=0.2, on_collapse="warn")
    assert masks_of(tmp_path, Task(1), callback, labels=lambda features: features[:, 0]) is not None


def test_a_checkpoint_with_masks_needs_no_loss(tmp_path: Path) -> None:
    from pytorch_lightning.callbacks import ModelCheckpoint

    data = DataLoader(TensorDataset(torch.randn(8, 20), torch.randn(8)), batch_size=8)
    saving = ModelCheckpoint(dirpath=tmp_path, filename="last")
    first = PruneAtInit(SNIP(), density=0.2, loss=nn.MSELoss(), on_collapse="warn")
    with pytest.warns(UserWarning, match="Using a target size"):
        trainer(tmp_path, first, saving, max_epochs=1).fit(Task(1), data)
    again = PruneAtInit(SNIP(), density=0.2)
    trainer(tmp_path, again, max_epochs=2, enable_checkpointing=False).fit(
        Task(1), data, ckpt_path=tmp_path / "last.ckpt"
    )
    assert again.masks is not None


@pytest.mark.parametrize("loss", [nn.MSELoss, "mse", nn.TripletMarginLoss(), lambda batch: batch])
def test_an_impossible_loss_option_is_refused_by_the_constructor(loss: Any) -> None:
    with pytest.raises(TypeError, match="must be a module or function of two arguments"):
        PruneAtInit(SNIP(), density=0.2, loss=loss)
