"""A data-driven pruner scores by the loss that the module trains on, and leaves nothing behind."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.loggers.logger import DummyLogger
from test_prune_at_init import trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate
from torchmetrics import Accuracy, MeanMetric

from synflow_pl import PruneAtInit, prune
from synflow_pl.pruners import FORCE, SNIP, GraSP, Magnitude, Pruner, SynFlow

N = 64
"""Number of training examples, which fit into one batch."""


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def features(*shape: int) -> Tensor:
    return torch.randn(N, *shape, generator=generator())


def labels(classes: int, *shape: int) -> Tensor:
    return torch.randint(classes, (N, *shape), generator=generator())


class Rows(Dataset[Any]):
    """Dataset of rows of any structure."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class Task(LightningModule):
    """Module with a network and data; subclasses add a training step."""

    network: nn.Module

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.build()

    def build(self) -> None:
        self.network = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))

    def data(self) -> Any:
        return DataLoader(TensorDataset(features(12), labels(4)), batch_size=N)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Pairs(Task):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.network(batch[0]), batch[1])


class MultiLabel(Task):
    def data(self) -> Any:
        return DataLoader(TensorDataset(features(12), labels(2, 4).float()), batch_size=N)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = functional.binary_cross_entropy_with_logits(self.network(batch[0]), batch[1])
        self.log("loss", loss)
        return {"loss": loss, "more": batch}


class Regression(Task):
    """Squeezes the outputs, and takes no index of the batch."""

    def build(self) -> None:
        self.network = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 1))

    def data(self) -> Any:
        return DataLoader(TensorDataset(features(12), features(1)[:, 0]), batch_size=N)

    def training_step(self, batch: Any) -> Tensor:
        return functional.mse_loss(self.network(batch[0]).squeeze(1), batch[1])


class Segmentation(Task):
    def build(self) -> None:
        self.network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1)
        )

    def data(self) -> Any:
        rows = zip(features(3, 6, 6), labels(5, 6, 6), strict=True)
        return DataLoader(Rows([{"image": x, "mask": y} for x, y in rows]), batch_size=N)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.network(batch["image"]), batch["mask"])


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.boxes, self.classes = nn.Linear(12, 24), nn.Linear(24, 4), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x).relu()
        return {"boxes": self.boxes(hidden), "classes": self.classes(hidden)}


@dataclass
class Target:
    boxes: Tensor
    classes: Tensor


def collate_targets(rows: list[Any]) -> tuple[Tensor, Target]:
    return torch.stack([row[0] for row in rows]), Target(
        torch.stack([row[1] for row in rows]), torch.stack([row[2] for row in rows])
    )


class Detection(Task):
    """Two heads, and targets in a dataclass."""

    def build(self) -> None:
        self.network = TwoHeads()

    def data(self) -> Any:
        rows = list(zip(features(12), features(4), labels(3), strict=True))
        return DataLoader(Rows(rows), batch_size=N, collate_fn=collate_targets)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        found, target = self.network(batch[0]), batch[1]
        return functional.smooth_l1_loss(found["boxes"], target.boxes) + functional.cross_entropy(
            found["classes"], target.classes
        )


class Tagging(Task):
    """Sequences of variable lengths, padded, whose padding is ignored."""

    def build(self) -> None:
        self.network = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 5))

    def data(self) -> Any:
        lengths = torch.randint(2, 9, (N,), generator=generator()).tolist()
        rows = [
            (features(9, 6)[i, :length], labels(5, 9)[i, :length])
            for i, length in enumerate(lengths)
        ]

        def collate(rows: list[Any]) -> Any:
            pad = nn.utils.rnn.pad_sequence
            return (
                pad([row[0] for row in rows], batch_first=True),
                pad([row[1] for row in rows], batch_first=True, padding_value=-100),
                [len(row[0]) for row in rows],
            )

        return DataLoader(Rows(rows), batch_size=N, collate_fn=collate)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.network(batch[0]).transpose(1, 2), batch[1])


class LanguageModel(Task):
    """Next-token prediction, with an embedding outside the pruned network."""

    def build(self) -> None:
        self.embedding = nn.Embedding(11, 8)
        self.network = nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 11))

    def data(self) -> Any:
        return DataLoader(Rows([{"tokens": row} for row in labels(11, 7)]), batch_size=N)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tokens = batch["tokens"]
        logits = self.network(self.embedding(tokens[:, :-1]))
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class Contrastive(Task):
    """Two random views of each example, which the network sees one after the other."""

    def data(self) -> Any:
        return DataLoader(TensorDataset(features(12)), batch_size=N)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        one, two = (
            functional.normalize(self.network(x + 0.1 * torch.randn_like(x)), dim=1)
            for _ in range(2)
        )
        return functional.cross_entropy(one @ two.T / 0.1, torch.arange(len(x)))


TASKS = [
    Pairs,
    MultiLabel,
    Regression,
    Segmentation,
    Detection,
    Tagging,
    LanguageModel,
    Contrastive,
]
PRUNERS: list[Callable[[], Pruner]] = [SNIP, lambda: GraSP(1.0), lambda: FORCE()]


def fit(folder: Path, module: Task, callback: PruneAtInit, **options: Any) -> Any:
    run = trainer(folder, callback, **{"max_epochs": 1, "enable_checkpointing": False, **options})
    run.fit(module, module.data())
    return callback.masks


class Scored:
    """A module, pruned in double precision, and its training step as a function of the weights.

    Attributes:
        scores: Scores of the last round, by parameter name.
        dense: Weights before pruning.
        weights: Weights that the functions read: those that the last round scored.
    """

    def __init__(self, folder: Path, task: type[Task], pruner: Pruner, rounds: int = 1) -> None:
        self.scores: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}
        score = pruner.score

        def watch(state: Any) -> Any:
            masks.update({name: mask.clone() for name, mask in state.masks.items()})
            scores = score(state)
            self.scores.update({name: tensor.clone() for name, tensor in scores.items()})
            return scores

        pruner.score = watch  # type: ignore[method-assign]
        self.module = task().double()
        before = copy.deepcopy(self.module.state_dict())
        callback = PruneAtInit(pruner, density=0.5, rounds=rounds, on_collapse="warn")
        fit(folder, self.module, callback, precision="64-true")
        self.module.load_state_dict(before)
        self.module.log = lambda *_, **__: None  # type: ignore[method-assign]
        network = self.module.network
        self.weights = {name: network.get_parameter(name) for name in self.scores}
        self.dense = {name: weight.detach().clone() for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            weight.data.mul_(masks[name])
        self.arguments = (
            apply_to_collection(
                next(iter(self.module.data())),
                Tensor,
                lambda x: x.double() if x.is_floating_point() else x,
            ),
            *(() if task is Regression else (0,)),
        )

    def loss(self) -> Tensor:
        torch.manual_seed(0)
        result: Any = self.module.training_step(*self.arguments)
        return result["loss"] if isinstance(result, dict) else result

    def derivative(self, name: str, place: tuple[int, ...]) -> float:
        """Return a central difference of the loss in one weight."""
        weight = self.weights[name].data
        value, step, losses = float(weight[place]), 1e-6, []
        for change in (step, -step):
            weight[place] = value + change
            losses.append(float(self.loss().detach()))
        weight[place] = value
        return (losses[0] - losses[1]) / (2 * step)

    def gradient(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.loss(), list(self.weights.values()))

    def places(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return three random weights of each layer."""
        picked = generator()
        return [
            (name, tuple(int(torch.randint(n, (), generator=picked)) for n in weight.shape))
            for name, weight in self.weights.items()
            for _ in range(3)
        ]


@pytest.mark.parametrize("task", TASKS)
def test_scores_of_snip_by_the_training_step_are_its_derivatives(
    tmp_path: Path, task: type[Task]
) -> None:
    """The score |w dL/dw| is compared with central differences."""
    scored = Scored(tmp_path, task, SNIP())
    for name, place in scored.places():
        expected = abs(float(scored.dense[name][place]) * scored.derivative(name, place))
        assert float(scored.scores[name][place]) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("task", TASKS)
def test_scores_of_force_are_derivatives_of_the_pruned_network_by_dense_weights(
    tmp_path: Path, task: type[Task]
) -> None:
    """The second round scores |w dL/dw|, where L is taken at the weights that the first kept."""
    scored = Scored(tmp_path, task, FORCE(), rounds=2)
    assert any(not bool(weight.all()) for weight in scored.weights.values())
    for name, place in scored.places():
        expected = abs(float(scored.dense[name][place]) * scored.derivative(name, place))
        assert float(scored.scores[name][place]) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("task", TASKS)
def test_scores_of_grasp_are_differences_of_the_gradient_along_the_gradient(
    tmp_path: Path, task: type[Task], rounds: int
) -> None:
    """The score is w Hg; Hg is a central difference of g, and pruned weights have no gradient."""
    scored = Scored(tmp_path, task, GraSP(1.0), rounds)
    weights = list(scored.weights.values())
    kept = [weight.detach() != 0 for weight in weights]
    flow = [gradient * on for gradient, on in zip(scored.gradient(), kept, strict=True)]
    step, ends = 1e-6, []
    for sign in (1, -1):
        for weight, along in zip(weights, flow, strict=True):
            weight.data.add_(along, alpha=sign * step)
        ends.append(scored.gradient())
        for weight, along in zip(weights, flow, strict=True):
            weight.data.sub_(along, alpha=sign * step)
    for name, weight, above, below, on in zip(scored.scores, weights, *ends, kept, strict=True):
        expected = weight.detach() * (above - below) / (2 * step)
        torch.testing.assert_close(scored.scores[name][on], expected[on], rtol=1e-5, atol=1e-8)
        assert float(expected[on].abs().max()) > 1e-5


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("task", TASKS)
def test_each_pruner_scores_by_the_training_step_of_any_task(
    tmp_path: Path, task: type[Task], pruner: Callable[[], Pruner]
) -> None:
    module = task()
    masks = fit(tmp_path, module, PruneAtInit(pruner(), density=0.3, on_collapse="warn"))
    assert masks.kept == masks.total - int(0.7 * masks.total)
    for parameter, mask in masks.parameters(module.network):
        assert not bool(parameter[~mask].any())


@pytest.mark.parametrize("pruner", [SNIP, GraSP, FORCE, partial(SNIP)], ids=range(4))
def test_the_training_step_gives_the_masks_of_explicit_pairs_and_loss(
    tmp_path: Path, pruner: Callable[[], Pruner]
) -> None:
    module = Pairs()
    rounds = 3 if pruner is not SNIP else None
    batch = next(iter(module.data()))
    right = prune(
        copy.deepcopy(module.network),
        pruner(),
        density=0.2,
        rounds=rounds,
        batches=[batch],
        on_collapse="ignore",
    )
    masks = fit(
        tmp_path, module, PruneAtInit(pruner(), density=0.2, rounds=rounds, on_collapse="warn")
    )
    assert all(torch.equal(masks[name], right[name]) for name in right)


def test_the_loss_options_take_precedence_over_the_training_step(tmp_path: Path) -> None:
    def l1(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.l1_loss(outputs, functional.one_hot(targets, 4).float())

    module = Pairs()
    batch = next(iter(module.data()))
    expected = [
        prune(
            copy.deepcopy(module.network),
            SNIP(),
            density=0.2,
            batches=[batch],
            loss=loss,
            on_collapse="ignore",
        )
        for loss in (functional.cross_entropy, l1)
    ]
    assert any(not torch.equal(expected[0][name], expected[1][name]) for name in expected[0])
    for options in (
        {"loss": l1},
        {"loss_fn": lambda module, batch: l1(module.network(batch[0]), batch[1])},
        {"loss": lambda network, batch: l1(network(batch[0]), batch[1])},
    ):
        masks = fit(
            tmp_path, Pairs(), PruneAtInit(SNIP(), density=0.2, on_collapse="warn", **options)
        )
        assert all(torch.equal(masks[name], expected[1][name]) for name in masks)
    with pytest.raises(ValueError, match="give either loss, a function of"):
        PruneAtInit(SNIP(), density=0.2, loss=l1, loss_fn=l1)


class Stateful(Task):
    """Changes everything that a training step can change."""

    def build(self) -> None:
        self.network = nn.Sequential(
            nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 4)
        )
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)
        self.accuracy, self.mean = Accuracy("multiclass", num_classes=4), MeanMetric()
        self.losses: list[float] = []
        self.steps = 0
        self.running = torch.zeros(4)
        self.generator = generator()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        noise = torch.randn(12, generator=self.generator) + random.random() + np.random.rand()
        logits = self.network(images + 0.01 * noise)
        with torch.no_grad():
            for own, other in zip(
                self.teacher.parameters(), self.network.parameters(), strict=True
            ):
                own.lerp_(other, 0.1)
            self.running.mul_(0.9).add_(logits.mean(0), alpha=0.1)
            self.seen += len(images)
        loss = functional.cross_entropy(logits, targets) + functional.mse_loss(
            logits, self.teacher(images)
        )
        self.accuracy(logits, targets)
        self.mean.update(loss.detach())
        self.losses.append(float(loss))
        self.steps += 1
        self.last = logits
        self.log("train/accuracy", self.accuracy, prog_bar=True)
        self.log_dict({"train/loss": loss}, on_epoch=True)
        for logger in self.loggers:
            logger.log_metrics({"own": 1.0})
        return loss


@pytest.mark.parametrize("train_mode", [False, True])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_scoring_leaves_nothing_on_module_trainer_or_logger(
    tmp_path: Path, pruner: Callable[[], Pruner], train_mode: bool
) -> None:
    before: dict[str, Any] = {}

    def everything(run: Any, module: Any) -> dict[str, Any]:
        metrics = (module.accuracy, module.mean)
        return {
            "attributes": {
                name: copy.deepcopy(value)
                for name, value in vars(module).items()
                if name in ("losses", "steps", "running") or name in ("log", "log_dict", "last")
            },
            "metrics": [copy.deepcopy(metric.metric_state) for metric in metrics]
            + [metric._update_count for metric in metrics],
            "buffers": {name: buffer.clone() for name, buffer in module.named_buffers()},
            "teacher": {name: x.clone() for name, x in module.teacher.named_parameters()},
            "modes": [child.training for child in module.modules()],
            "gradients": [x.grad is None for x in module.parameters()],
            "logged": (dict(run.logged_metrics), dict(run.callback_metrics)),
            "own": run.logger.calls,
            "loggers": list(run.loggers),
            "random": (
                torch.get_rng_state().tolist(),
                random.getstate(),
                np.random.get_state()[1].tolist(),
                module.generator.get_state().tolist(),
            ),
        }

    class Checking(PruneAtInit):
        def on_fit_start(self, run: Any, module: Any) -> None:
            before.update(everything(run, module))
            super().on_fit_start(run, module)
            assert_same(before, everything(run, module))
            before["checked"] = True

    class Counting(DummyLogger):
        calls = 0

        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            self.calls += any(name in metrics for name in ("own", "train/loss"))

    callback = Checking(pruner(), density=0.3, on_collapse="warn", train_mode=train_mode)
    logger = Counting()
    fit(tmp_path, Stateful(), callback, logger=logger, log_every_n_steps=1)
    assert before["checked"]
    assert logger.calls  # the training itself logs


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, Tensor):
        assert torch.equal(left, right)
    else:
        assert left is right or left == right


class Manual(Task):
    def build(self) -> None:
        super().build()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss_of(batch))
        optimizer.step()

    def loss_of(self, batch: Any) -> Tensor:
        return functional.cross_entropy(self.network(batch[0]), batch[1])


class Adversarial(Manual):
    """Generator and discriminator, trained by turns; the generator is pruned."""

    def build(self) -> None:
        super().build()
        self.discriminator = nn.Linear(4, 1)

    def loss_of(self, batch: Any) -> Tensor:
        return functional.softplus(-self.discriminator(self.network(batch[0]))).mean()


@pytest.mark.parametrize("task", [Manual, Adversarial])
def test_a_module_with_manual_optimisation_is_scored_by_loss_fn(
    tmp_path: Path, task: type[Manual]
) -> None:
    module = task()
    with pytest.raises(
        ValueError,
        match=rf"training_step\(\) of {task.__name__} optimises manually .* PruneAtInit loss_fn=",
    ):
        fit(tmp_path, module, PruneAtInit(SNIP(), density=0.3))
    assert all(bool(parameter.all()) for parameter in module.network.parameters())
    callback = PruneAtInit(SNIP(), density=0.3, on_collapse="warn", loss_fn=task.loss_of)
    right = prune(
        copy.deepcopy(module.network),
        SNIP(),
        density=0.3,
        batches=[next(iter(module.data()))],
        loss=lambda network, batch: _with_network(module, network).loss_of(batch),
        on_collapse="ignore",
    )
    masks = fit(tmp_path, task(), callback)
    assert all(torch.equal(masks[name], right[name]) for name in right)


def _with_network(module: Manual, network: nn.Module) -> Manual:
    other = copy.deepcopy(module)
    other.network = network
    return other


class WithoutStep(Task):
    def on_train_start(self) -> None:
        raise AssertionError("no training is to be started")


class OfNone(Task):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None


class OfVector(Task):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.network(batch[0]), batch[1], reduction="none")


class OfOtherNetwork(Task):
    def build(self) -> None:
        super().build()
        self.other = nn.Linear(12, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.other(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (OfNone, r"training_step\(\) of OfNone returned a NoneType for batch 0, not one number"),
        (OfVector, r"training_step\(\) of OfVector returned a tensor of shape \(64,\)"),
        (OfOtherNetwork, "every score of SNIP is zero"),
    ],
)
def test_a_step_without_a_loss_of_the_network_is_refused(
    tmp_path: Path, task: type[Task], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, task(), PruneAtInit(SNIP(), density=0.3))


def test_a_temperature_divides_the_outputs_of_the_network_or_is_refused(tmp_path: Path) -> None:
    class Inside(Pairs):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            hidden = self.network[0](batch[0]).relu()  # type: ignore[index]
            return functional.cross_entropy(self.network[2](hidden), batch[1])  # type: ignore[index]

    with pytest.raises(ValueError, match="does not call Sequential itself, so its outputs cannot"):
        fit(tmp_path, Inside(), PruneAtInit(GraSP(), density=0.3))
    masks = fit(tmp_path, Inside(), PruneAtInit(GraSP(1.0), density=0.3, on_collapse="warn"))
    assert masks.density == pytest.approx(0.3, abs=0.01)


class Hooked(Pairs):
    """Scales its batches when they are moved to the device."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * 100, batch[1]


def test_batches_pass_through_the_transfer_hooks_before_they_are_scored(tmp_path: Path) -> None:
    images, targets = next(iter(Hooked().data()))
    right = prune(
        Hooked().network,
        SNIP(),
        density=0.3,
        batches=[(images * 100, targets)],
        on_collapse="ignore",
    )
    masks = fit(tmp_path, Hooked(), PruneAtInit(SNIP(), density=0.3, on_collapse="warn"))
    assert all(torch.equal(masks[name], right[name]) for name in right)


class Module(Task):
    """Module whose own layers are pruned, and whose step calls the module."""

    def build(self) -> None:
        self.first, self.second = nn.Linear(12, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(self.first(x).relu())
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return functional.cross_entropy(self(batch[0].flip(1)), batch[1])


@pytest.mark.parametrize("pruner", [SNIP(), GraSP()])
def test_a_module_without_a_network_is_scored_as_a_whole(tmp_path: Path, pruner: Pruner) -> None:
    images, targets = next(iter(Module().data()))
    right = prune(
        Module(), pruner, density=0.3, batches=[(images.flip(1), targets)], on_collapse="ignore"
    )
    masks = fit(tmp_path, Module(), PruneAtInit(pruner, density=0.3, on_collapse="warn"))
    assert all(torch.equal(masks[name], right[name]) for name in right)


class Reshaped(Pairs):
    """Gives the network another shape than the batch has."""

    def data(self) -> Any:
        return DataLoader(TensorDataset(features(3, 4), labels(4)), batch_size=N)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch[0].flatten(1), batch[1]), batch_idx)


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, *, image: Tensor, scale: float, target: Tensor | None = None) -> Any:
        logits = scale * self.layers(image)
        return {"logits": logits, "loss": functional.cross_entropy(logits, target)}


class OfKeywords(Task):
    """A network that is called by keyword and returns its loss."""

    def build(self) -> None:
        self.network = ByKeyword()

    def data(self) -> Any:
        rows = zip(features(12), labels(4), strict=True)
        return DataLoader(Rows([{"image": x, "target": y} for x, y in rows]), batch_size=N)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.network(**batch, scale=2.0)["loss"]
        return loss


@pytest.mark.parametrize("pruner", [SynFlow(), SNIP(), Magnitude()])
def test_the_example_has_the_keywords_of_the_training_step(tmp_path: Path, pruner: Pruner) -> None:
    callback = PruneAtInit(pruner, density=0.3, on_collapse="warn")
    fit(tmp_path, OfKeywords(), callback)
    assert callback.diagnosis is not None
    assert [layer.name for layer in callback.diagnosis.layers] == [
        "layers.0.weight",
        "layers.2.weight",
    ]


@pytest.mark.parametrize("pruner", [SynFlow(), SNIP(), Magnitude()])
def test_the_example_is_what_the_training_step_gives_the_network(
    tmp_path: Path, pruner: Pruner
) -> None:
    callback = PruneAtInit(pruner, density=0.3, on_collapse="warn")
    fit(tmp_path, Reshaped(), callback)
    assert callback.diagnosis is not None
    assert callback.diagnosis.layers[0].density > 0


def test_a_data_module_of_dictionaries_may_give_its_own_pruning_batches(tmp_path: Path) -> None:
    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return Segmentation().data()

        def pruning_batches(self) -> Any:
            yield default_collate(list(Segmentation().data().dataset)[:10])

    sizes: list[int] = []

    class Watching(SNIP):
        def score(self, state: Any) -> dict[str, Tensor]:
            sizes.extend(state.loss.size(batch) for batch in state.batches)
            return super().score(state)

    callback = PruneAtInit(Watching(), density=0.3, on_collapse="warn")
    trainer(tmp_path, callback, max_epochs=1, enable_checkpointing=False).fit(
        Segmentation(), datamodule=Data()
    )
    assert sizes == [10]


def test_losses_of_batches_are_weighted_by_their_examples(tmp_path: Path) -> None:
    class Smaller(Pairs):
        def data(self) -> Any:
            return DataLoader(TensorDataset(features(12), labels(4)), batch_size=40)

    batches = list(Smaller().data())
    whole = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    right = prune(Smaller().network, SNIP(), density=0.3, batches=whole, on_collapse="ignore")
    masks = fit(tmp_path, Smaller(), PruneAtInit(SNIP(), density=0.3, on_collapse="warn"))
    assert all(torch.equal(masks[name], right[name]) for name in right)


@pytest.mark.parametrize("loss", [nn.MSELoss, "mse", nn.TripletMarginLoss(), lambda batch: batch])
@pytest.mark.parametrize("option", ["loss", "loss_fn"])
def test_an_impossible_loss_option_is_refused_by_the_constructor(option: str, loss: Any) -> None:
    with pytest.raises(TypeError, match=f"^{option}: .* must be a module or function of two"):
        PruneAtInit(SNIP(), density=0.2, **{option: loss})


@pytest.mark.parametrize("pruner", [SynFlow(), Magnitude()], ids=["synflow", "magnitude"])
def test_a_data_free_pruner_needs_no_loss(tmp_path: Path, pruner: Pruner) -> None:
    assert fit(tmp_path, Manual(), PruneAtInit(pruner, density=0.3, on_collapse="warn")) is not None
