"""RigL and SET move masks during a training: what they drop, grow, keep and store."""

from __future__ import annotations

import copy
import csv
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision
from test_data import same_weights
from test_distributed import two
from test_last_checkpoint import copies
from test_last_checkpoint import fit as fit_and_copy
from test_prune_at_init import OPTIMIZERS, Classes, classifier, trainer
from test_several_networks import Two
from torch import Tensor, nn
from torch.utils.data import DataLoader

from synflow_pl import Classifier, Masks, PruneAtInit, prune
from synflow_pl.diagnosis import DeadNetwork
from synflow_pl.networks import FC
from synflow_pl.pruners import SET, Magnitude, Random, RigL, Shuffled, SynFlow
from synflow_pl.pruners.drop_and_grow import GrowthState
from synflow_pl.training.checkpoints import KEY, read
from tests.pruners.test_drop_and_grow import by_sorting

# FC((1, 2, 4), depth=3, width=16) has 8 * 16 + 16 * 16 + 16 * 10 = 544 weights; an epoch of Classes
# has eight batches of eight images.
TOTAL = 544
METHODS = [RigL, SET]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


def moving(method: Any = RigL, density: float = 0.3, **options: Any) -> PruneAtInit:
    settings = {"delta_t": 3, "t_end": 0.75, **options}
    return PruneAtInit(method(**settings), density=density, on_collapse="warn")


class Record(Callback):
    """Record masks, weights and optimiser state after each batch."""

    def __init__(self, pruning: PruneAtInit) -> None:
        self.pruning = pruning
        self.masks: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.state: list[dict[str, dict[str, Tensor]]] = []
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        network: Any = pl_module.network
        assert self.pruning.masks is not None
        self.masks.append({name: mask.clone() for name, mask in self.pruning.masks.items()})
        named = dict(network.named_parameters())
        self.weights.append({name: p.detach().clone() for name, p in named.items()})
        states: list[Any] = [optimizer.state for optimizer in trainer.optimizers]
        self.state.append(
            {
                name: {
                    key: value.clone()
                    for state in states
                    for key, value in state.get(p, {}).items()
                    if isinstance(value, Tensor) and value.shape == p.shape
                }
                for name, p in named.items()
            }
        )
        self.steps.append(trainer.global_step)

    @property
    def updates(self) -> list[int]:
        """Indices of the batches after which masks differ from those after the batch before."""
        return [
            index
            for index in range(1, len(self.masks))
            if not all(
                torch.equal(mask, self.masks[index - 1][name])
                for name, mask in self.masks[index].items()
            )
        ]


def fit(
    folder: Path,
    pruning: PruneAtInit,
    *callbacks: Callback,
    optimizer: str = "SGD",
    module: Classifier | None = None,
    **options: Any,
) -> tuple[Record, Record]:
    """Train, and return what was recorded after each batch before and after the pruning callback.

    Lightning calls the callbacks in their order, so the first of the two sees the network after
    the optimiser's step and before the update of the masks.
    """
    before, after = Record(pruning), Record(pruning)
    module = module or Classifier(classifier().network, optimizer=OPTIMIZERS[optimizer])
    defaults = {"enable_checkpointing": False, "max_epochs": 3}
    trainer(folder, before, pruning, after, *callbacks, **(defaults | options)).fit(
        module, Classes()
    )
    return before, after


# -- one update by hand


class Line(LightningModule):
    """One layer of six weights whose gradient is the input, whatever the weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(6, 1, bias=False)
        self.network.weight.data = torch.tensor([[1.0, -0.2, 0.5, 0.1, 0.0, 0.0]])
        self.example_input_array = torch.ones(1, 6)

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return self.network(batch).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.125)


def test_an_update_by_hand(tmp_path: Path) -> None:
    masks = tmp_path / "masks.safetensors"
    Masks({"weight": torch.tensor([[True, True, True, True, False, False]])}).save(masks)
    rigl = RigL(drop_fraction=0.5, delta_t=2, t_end=1.0, anneal="constant")
    pruning = PruneAtInit(rigl, masks_path=masks)
    record = Record(pruning)
    data = DataLoader([torch.tensor([1.0, 0, 0, 0, 3, -7])] * 3, batch_size=1)
    options: dict[str, Any] = {"max_epochs": 1, "enable_checkpointing": False}
    trainer(tmp_path, pruning, record, **options).fit(Line(), data)
    steps = [weights["weight"][0].tolist() for weights in record.weights]
    # Step 1 subtracts 0.125 times the gradient of the kept weights.
    assert steps[0] == pytest.approx([0.875, -0.2, 0.5, 0.1, 0, 0])
    # Step 2 is replaced by the update: two of four weights are dropped, 0.1 and -0.2, and the two
    # with the largest gradients, 3 and -7, are grown from zero.
    assert steps[1] == pytest.approx([0.875, 0, 0.5, 0, 0, 0])
    # In step 3 the grown weights are trained.
    assert steps[2] == pytest.approx([0.75, 0, 0.5, 0, -0.375, 0.875])
    assert record.masks[2]["weight"].tolist() == [[True, False, True, False, True, True]]


# -- density and schedule


@each_method
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "extra",
    [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}],
    ids=["plain", "accumulated and clipped"],
)
def test_density_and_weights_per_layer_are_exact_after_every_batch(
    tmp_path: Path, method: Any, optimizer: str, extra: dict[str, Any]
) -> None:
    pruning = moving(method)
    before, after = fit(tmp_path, pruning, optimizer=optimizer, **extra)
    assert len(after.masks) == 24
    counts = {name: int(mask.sum()) for name, mask in after.masks[0].items()}
    assert sum(counts.values()) == 164  # ceil(0.3 * 544)
    for record in (before, after):
        for masks, weights in zip(record.masks, record.weights, strict=True):
            assert {name: int(mask.sum()) for name, mask in masks.items()} == counts
            assert all(not weights[name][~mask].any() for name, mask in masks.items())
    # 24 steps, or 12 with accumulation: updates at each third until three quarters of them.
    expected = [5, 11] if extra else [2, 5, 8, 11, 14]
    assert after.updates == expected
    assert [before.steps[index] for index in expected] == ([3, 6] if extra else [3, 6, 9, 12, 15])


class Elsewhere(SET):
    """SET that grows dropped weights last, so that every dropped weight leaves the mask."""

    def growth_scores(self, state: GrowthState) -> dict[str, Tensor]:
        scores = super().growth_scores(state)
        return {name: score - state.masks[name].float() for name, score in scores.items()}


@pytest.mark.parametrize("anneal", ["cosine", "constant"])
def test_each_update_drops_the_fraction_of_the_schedule_in_each_layer(
    tmp_path: Path, anneal: str
) -> None:
    _, after = fit(tmp_path, moving(Elsewhere, anneal=anneal, drop_fraction=0.4, by_sign=False))
    assert len(after.updates) == 5
    for index in after.updates:
        # T_end is step 18, three quarters of 24 steps.
        cosine = 0.4 / 2 * (1 + math.cos((index + 1) * math.pi / 18))
        for name, mask in after.masks[index].items():
            kept = int(mask.sum())
            count = math.floor(kept * (cosine if anneal == "cosine" else 0.4))
            dropped = int((after.masks[index - 1][name] & ~mask).sum())
            assert dropped == min(count, mask.numel() - kept), (index, name)


def test_masks_do_not_change_from_t_end_on(tmp_path: Path) -> None:
    _, after = fit(tmp_path, moving(SET, delta_t=4, t_end=0.5), max_epochs=2)
    # Of 16 steps the updates are those before step 8.
    assert after.updates == [3]
    _, after = fit(tmp_path, moving(SET, delta_t=4, t_end=0.51), max_epochs=2)
    assert after.updates == [3, 7]


# -- what is grown


@pytest.mark.parametrize("accumulate", [1, 4])
def test_rigl_grows_the_weights_with_the_largest_gradients_of_the_accumulated_batches(
    tmp_path: Path, accumulate: int
) -> None:
    pruning = moving(delta_t=2, t_end=1.0)
    seen: list[tuple[nn.Module, Any]] = []

    class Batches(Callback):
        def on_train_batch_start(
            self, _: Trainer, module: LightningModule, batch: Any, __: int
        ) -> None:
            seen.append((copy.deepcopy(module.network), batch))  # type: ignore[arg-type]

    options: dict[str, Any] = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.01}
    before, after = fit(tmp_path, pruning, Batches(), **options)
    steps = 24 // accumulate
    assert len(after.updates) >= 2
    for index in after.updates:
        # The gradient of the mean loss over all images since the last step, on the network before.
        network = seen[index][0]
        batches = [batch for _, batch in seen[index - accumulate + 1 : index + 1]]
        images, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        loss = nn.functional.cross_entropy(network(images), labels)
        masked = {name: network.get_parameter(name) for name in after.masks[index]}
        gradients = torch.autograd.grad(loss, list(masked.values()))
        step = (index + 1) // accumulate
        fraction = 0.3 / 2 * (1 + math.cos(step * math.pi / steps))
        for (name, weight), gradient in zip(masked.items(), gradients, strict=True):
            mask = before.masks[index][name]
            expected = by_sorting(weight.detach(), mask, gradient.abs(), fraction)
            assert torch.equal(after.masks[index][name], expected), (index, name)


# -- what an update changes beside the masks


@each_method
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_grown_weights_and_their_state_are_zero_and_everything_else_is_unchanged(
    tmp_path: Path, method: Any, optimizer: str
) -> None:
    before, after = fit(tmp_path, moving(method), optimizer=optimizer)
    keys = {"momentum_buffer"} if optimizer == "SGD" else {"exp_avg", "exp_avg_sq"}
    num_grown = num_regrown = 0
    for index in after.updates:
        for name, weight in after.weights[index].items():
            previous = before.weights[index][name]
            if name not in after.masks[index]:
                assert torch.equal(weight, previous)
                continue
            new, old = after.masks[index][name], before.masks[index][name]
            grown, stayed = new & ~old, new & old
            if method is SET:  # weights that are dropped and grown again start from zero, too
                grown |= stayed & (weight != previous)
                # They are among the smallest of their sign, which were dropped.
                stayed &= ~grown & (weight != 0)  # of weights that were zero, some are grown again
                for sign in (previous < 0, previous >= 0):
                    dropped = previous[grown & old & sign].abs().tolist()
                    smallest = min(previous[stayed & sign].abs().tolist(), default=math.inf)
                    assert max(dropped, default=0) <= smallest
                num_regrown += int((grown & old).sum())
            num_grown += int(grown.sum())
            assert not weight[grown].any()
            assert torch.equal(weight[stayed], previous[stayed])
            states = after.state[index][name]
            assert set(states) == keys
            for key, state in states.items():
                assert not state[grown].any()
                assert torch.equal(state[stayed], before.state[index][name][key][stayed])
                assert state[stayed].any()
    assert num_grown > 20
    assert (num_regrown > 5) == (method is SET)


def test_an_update_takes_the_place_of_a_step_of_rigl_and_not_of_set(tmp_path: Path) -> None:
    for method, replaced in ((RigL, True), (SET, False)):
        before, after = fit(tmp_path, moving(method))
        for index in range(1, len(before.weights)):
            unchanged = all(
                torch.equal(weight, after.weights[index - 1][name])
                for name, weight in before.weights[index].items()
            )
            assert unchanged == (replaced and index in after.updates)


def test_state_of_a_weight_that_was_dropped_and_grows_again_is_zero(tmp_path: Path) -> None:
    # In an early update a weight with momentum is dropped; when it grows again in a later one, the
    # momentum that has remained at its place must not move it.
    before, after = fit(tmp_path, moving(SET, delta_t=1, drop_fraction=0.9, t_end=1.0))
    returned = 0
    for index in after.updates:
        for name, mask in after.masks[index].items():
            grown = mask & ~before.masks[index][name]
            stale = before.state[index][name]["momentum_buffer"][grown]
            returned += int(stale.count_nonzero())
            assert not after.state[index][name]["momentum_buffer"][grown].any()
    assert returned > 20


# -- mixed precision


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_update_waits_for_a_step_that_the_gradient_scaler_does_not_skip(
    tmp_path: Path, fused: bool, accumulate: int
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3)
    pruning = moving(delta_t=2, t_end=1.0)
    scales: list[float] = []

    class Scales(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            scales.append(scaler.get_scale())

    module = Classifier(
        classifier().network, optimizer=lambda p: torch.optim.Adam(p, lr=0.01, fused=fused)
    )
    plugin: Any = MixedPrecision("16-mixed", "cpu", scaler)
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate}
    _, after = fit(
        tmp_path, pruning, Scales(), module=module, plugins=[plugin], max_epochs=6, **options
    )
    skipped = [i for i in range(1, len(scales)) if scales[i] < scales[i - 1]]
    assert len(skipped) >= 3
    assert not set(skipped) & set(after.updates)
    # An update is due at each second step; one that is skipped is made at the next that is not.
    state = pruning._updates.state
    assert state is not None
    expected = []
    for index in range(len(scales)):
        step = (index + 1) // accumulate
        made = (index + 1) % accumulate == 0 and index not in skipped and index > 0
        if made and step < 48 // accumulate and step // 2 * 2 > (expected[-1] if expected else 0):
            expected.append(step)
    assert state.done == len(expected)
    assert any(step % 2 for step in expected)  # at least one was postponed
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@each_method
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true"])
def test_half_precision_is_updated_exactly(tmp_path: Path, method: Any, precision: Any) -> None:
    _, after = fit(tmp_path, moving(method), precision=precision)
    assert after.updates == [2, 5, 8, 11, 14]
    counts = {name: int(mask.sum()) for name, mask in after.masks[0].items()}
    for masks, weights in zip(after.masks, after.weights, strict=True):
        assert {name: int(mask.sum()) for name, mask in masks.items()} == counts
        assert all(not weights[name][~mask].any() for name, mask in masks.items())


# -- several networks and optimisers, frozen and excluded weights


def test_networks_of_several_optimisers_are_updated_alone(tmp_path: Path) -> None:
    class Steps(Callback):
        def __init__(self) -> None:
            self.weights: list[dict[str, Tensor]] = []

        def on_train_batch_end(self, _: Trainer, module: LightningModule, *__: Any) -> None:
            self.weights.append({k: v.clone() for k, v in module.state_dict().items()})

    cuts = [
        PruneAtInit(RigL(delta_t=2, t_end=1.0), density=0.3, network="g", input_shape=(20,)),
        PruneAtInit(SET(delta_t=3, t_end=1.0), density=0.2, network="d", input_shape=(20,)),
    ]
    steps = Steps()
    data = DataLoader([(torch.randn(20), 0) for _ in range(32)], batch_size=4)
    options: dict[str, Any] = {"max_epochs": 2, "enable_checkpointing": False}
    trainer(tmp_path, steps, *cuts, **options).fit(Two(), data)
    # 16 batches: of each network the updates before the last batch.
    assert [cut._updates.state.done for cut in cuts] == [7, 5]  # type: ignore[union-attr]
    assert [cut.masks.kept for cut in cuts] == [384, 256]  # type: ignore[union-attr]
    for index in range(1, 16):
        then, now = steps.weights[index - 1], steps.weights[index]
        # The step of the generator is replaced in its updates, and that of the other network made.
        still = torch.equal(then["g.0.bias"], now["g.0.bias"])
        assert still == ((index + 1) % 2 == 0 and index < 15)
        assert not torch.equal(then["d.0.bias"], now["d.0.bias"])


@each_method
def test_frozen_and_excluded_weights_are_left_alone(tmp_path: Path, method: Any) -> None:
    network = FC((1, 2, 4), depth=4, width=16)
    names = [name for name, p in network.named_parameters() if p.dim() > 1]
    network.get_parameter(names[1]).requires_grad_(False)
    pruning = PruneAtInit(
        method(delta_t=2, t_end=1.0), density=0.3, exclude=names[2], on_collapse="warn"
    )
    module = Classifier(network, optimizer=OPTIMIZERS["SGD"])
    _, after = fit(tmp_path, pruning, module=module)
    assert sorted(after.masks[0]) == sorted([names[0], names[1], names[3]])
    assert torch.equal(after.masks[0][names[1]], after.masks[-1][names[1]])
    assert torch.equal(after.weights[0][names[1]], after.weights[-1][names[1]])
    assert not torch.equal(after.masks[0][names[0]], after.masks[-1][names[0]])
    assert after.weights[-1][names[2]].all()


@each_method
def test_an_average_has_the_zeros_of_the_last_masks(tmp_path: Path, method: Any) -> None:
    pruning = moving(method, t_end=1.0)
    saving = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fit(tmp_path, pruning, EMAWeightAveraging(decay=0.9), saving, enable_checkpointing=True)
    weights = read(tmp_path / "last.ckpt")["state_dict"]
    assert pruning.masks is not None
    assert all(not weights[f"network.{name}"][~mask].any() for name, mask in pruning.masks.items())


def test_copies_of_weights_in_a_callback_are_left_alone(tmp_path: Path) -> None:
    class Copies(Callback):
        """Hold the weights after the last step and after step 4."""

        def __init__(self) -> None:
            self.last: dict[str, Tensor] = {}
            self.fourth: dict[str, Tensor] = {}

        def on_train_batch_start(self, _: Trainer, module: LightningModule, *__: Any) -> None:
            self.last = {name: p.detach().clone() for name, p in module.named_parameters()}
            hidden.append({name: p.numpy().copy() for name, p in self.last.items()})
            if len(hidden) == 5:
                self.fourth = {name: p.clone() for name, p in self.last.items()}

    copied = Copies()
    hidden: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Pruning: Copies")
        fit(tmp_path, moving(SET, t_end=1.0, delta_t=2), copied)
    for name, weight in copied.fourth.items():
        assert (weight.numpy() == hidden[4][name]).all()
        assert (copied.last[name].numpy() == hidden[-1][name]).all()


# -- diagnosis and messages


def test_each_update_is_diagnosed_and_logged(tmp_path: Path) -> None:
    pruning = moving(drop_fraction=0.4)
    logger = CSVLogger(tmp_path, name="", version="")
    fit(tmp_path, pruning, logger=logger)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("pruning/drop_fraction")]
    assert [int(row["step"]) for row in rows] == [2, 5, 8, 11, 14]
    for row in rows:
        expected = 0.4 / 2 * (1 + math.cos((int(row["step"]) + 1) * math.pi / 18))
        assert float(row["pruning/drop_fraction"]) == pytest.approx(expected)
        assert float(row["pruning/density"]) == pytest.approx(164 / TOTAL)
        assert 0 < float(row["pruning/effective_density"]) <= 164 / TOTAL
    assert pruning.diagnosis is not None
    assert pruning.masks is not None
    stored = Masks.load(tmp_path / "masks.safetensors")
    assert all(torch.equal(mask, stored[name]) for name, mask in pruning.masks.items())
    with open(tmp_path / "diagnosis.csv", newline="") as file:
        kept = {
            row["name"]: int(row["kept"]) for row in csv.DictReader(file) if row["name"] in stored
        }
    assert kept == {name: int(mask.sum()) for name, mask in stored.items()}


def test_an_update_that_disconnects_the_network_is_an_error_or_a_warning(tmp_path: Path) -> None:
    class Away(SET):
        """Grow weights of the first unit only."""

        def growth_scores(self, state: Any) -> Any:
            rows = {name: torch.zeros_like(weight) for name, weight in state.weights.items()}
            for scores in rows.values():
                scores[0] = 1
            return rows

    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 10))
    masks = {
        "1.weight": torch.zeros(4, 8, dtype=torch.bool),
        "3.weight": torch.zeros(10, 4, dtype=torch.bool),
    }
    masks["1.weight"][2, 0] = masks["3.weight"][5, 2] = True
    Masks(masks).save(tmp_path / "masks.safetensors")
    options: dict[str, Any] = {"masks_path": tmp_path / "masks.safetensors"}
    method = Away(drop_fraction=1.0, delta_t=2, t_end=1.0)
    # The first update leaves 1.weight[0, 0] and 3.weight[0, 0], a path.
    pruning = PruneAtInit(method, **options)
    fit(tmp_path, pruning, module=Classifier(copy.deepcopy(network), optimizer=OPTIMIZERS["SGD"]))
    assert pruning.diagnosis is not None
    assert pruning.diagnosis.alive

    class Apart(Away):
        """Grow a weight of the first unit in one layer, and of the last input in the other."""

        def growth_scores(self, state: Any) -> Any:
            rows = super().growth_scores(state)
            rows["3.weight"] = torch.zeros(10, 4)
            rows["3.weight"][:, 3] = 1
            return rows

    apart = Apart(drop_fraction=1.0, delta_t=2, t_end=1.0)
    with pytest.raises(DeadNetwork, match=r"3\.weight"):
        fit(
            tmp_path,
            PruneAtInit(apart, **options),
            module=Classifier(copy.deepcopy(network), optimizer=OPTIMIZERS["SGD"]),
        )
    with pytest.warns(UserWarning, match=r"3\.weight"):
        fit(
            tmp_path,
            PruneAtInit(apart, on_collapse="warn", **options),
            module=Classifier(copy.deepcopy(network), optimizer=OPTIMIZERS["SGD"]),
        )


def test_a_training_without_an_update_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="RigL has not updated the masks, since .* delta_t: 100"):
        fit(tmp_path, moving(delta_t=100))


# -- what cannot work


@each_method
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "unit"}, "granularity: 'unit' removes groups of weights, and"),
        ({"granularity": "2:4", "density": None}, "granularity: '2:4' removes groups of weights"),
        ({"compact": True}, "compact: true needs masks that do not change, and"),
        ({"freeze_dead": True}, "freeze_dead: true needs masks that do not change, and"),
        ({"mask_bias": True}, "mask_bias: true needs masks that do not change, and"),
        ({"mask_norm": True}, "mask_norm: true needs masks that do not change, and"),
        ({"sanity": "invert"}, "sanity: invert needs masks that do not change, and"),
        ({"score_from": "a"}, "score_from: a needs masks that do not change, and"),
        ({"effective_density": 0.1, "density": None}, "effective_density: 0.1, but"),
        ({"flops": 0.1, "density": None}, "flops: 0.1, but"),
        ({"parameters": 0.1, "density": None}, "parameters: 0.1, but"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    method: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        PruneAtInit(method(), **({"density": 0.3} | options))
    assert method.__name__ in str(raised.value)


def test_a_wrapper_of_a_moving_pruner_is_refused() -> None:
    with pytest.raises(ValueError, match="Shuffled wraps RigL, whose masks change during training"):
        PruneAtInit(Shuffled(RigL()), density=0.3)
    assert PruneAtInit(RigL(Shuffled(SynFlow())), density=0.3).masks is None


def test_a_training_without_an_end_or_with_too_late_a_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dynamic sparse training takes a part of the training"):
        fit(tmp_path, moving(), max_epochs=-1)
    late = PruneAtInit(RigL(t_end=0.5), density=0.3, at_epoch=2)
    with pytest.raises(ValueError, match="at_epoch: 2 lies after the end of the dynamic sparse"):
        trainer(tmp_path, late, max_epochs=4, enable_checkpointing=False).fit(
            classifier(), Classes()
        )


def test_masks_of_biases_cannot_be_updated(tmp_path: Path) -> None:
    network = FC((1, 2, 4), depth=3, width=16)
    masks = prune(network, Magnitude(), density=0.02, mask_bias=True, on_collapse="ignore")
    assert masks.followers
    masks.save(tmp_path / "masks.safetensors")
    with pytest.raises(ValueError, match="masks biases or gains, which RigL cannot update"):
        PruneAtInit(RigL(), masks_path=tmp_path / "masks.safetensors")


# -- other starts


def test_updates_begin_at_the_epoch_at_which_the_network_is_pruned(tmp_path: Path) -> None:
    pruning = PruneAtInit(RigL(SynFlow(), delta_t=3, t_end=1.0), density=0.3, rounds=4, at_epoch=1)
    states: list[Any] = []

    class States(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            states.append(pruning._updates.state and pruning._updates.state.done)

    trainer(tmp_path, pruning, States(), enable_checkpointing=False).fit(classifier(), Classes())
    # 16 steps; the network is pruned before step 9, which is an update.
    assert states == [None] * 8 + [1, 1, 1, 2, 2, 2, 3, 3]


def test_another_network_starts_anew_and_the_same_one_goes_on(tmp_path: Path) -> None:
    pruning = moving()
    first = classifier()
    for module, done in ((first, 5), (first, 10), (classifier(), 5)):
        trainer(tmp_path, pruning, max_epochs=3, enable_checkpointing=False).fit(module, Classes())
        assert pruning._updates.state is not None
        assert pruning._updates.state.done == done


# -- checkpoints


Case = tuple[Callable[[], PruneAtInit], dict[str, Any]]
RESUMED: dict[str, Case] = {
    "RigL": (lambda: moving(delta_t=4), {}),
    "SET": (lambda: moving(SET, delta_t=4), {}),
    "SET, accumulated": (
        lambda: moving(SET, delta_t=2),
        {"accumulate_grad_batches": 2, "every": 3},
    ),
}


@pytest.mark.parametrize("case", RESUMED)
def test_training_resumed_from_any_checkpoint_ends_with_the_same_weights_and_masks(
    case: str, tmp_path: Path
) -> None:
    pruning, options = RESUMED[case]
    _, whole = fit_and_copy(tmp_path / "whole", pruning(), **options)
    expected = read(tmp_path / "whole/last.ckpt")
    saved = copies(tmp_path / "whole")
    # The last checkpoint is left out, since no step remains after it.
    for step, path in list(saved.items())[:-1]:
        _, module = fit_and_copy(tmp_path / str(step), pruning(), ckpt_path=path, **options)
        assert same_weights(module, whole), step
        ended = read(tmp_path / str(step) / "last.ckpt")
        assert ended[KEY]["updates"] == expected[KEY]["updates"]
        masks = ended[KEY]["masks"]["masks"]
        assert all(
            torch.equal(mask, expected[KEY]["masks"]["masks"][name]) for name, mask in masks.items()
        )
    assert expected[KEY]["updates"]["done"] >= 4


def test_random_growth_resumes_by_the_seed_of_the_checkpoint(tmp_path: Path) -> None:
    def run(name: str, seed: int, path: Path | None = None) -> Masks:
        pruning, module = moving(SET, t_end=1.0), classifier()
        torch.manual_seed(seed)
        saving = ModelCheckpoint(dirpath=tmp_path / name, filename="{epoch}", save_top_k=-1)
        trainer(tmp_path, pruning, saving, max_epochs=3).fit(module, Classes(), ckpt_path=path)
        assert pruning.masks is not None
        return pruning.masks

    # The global seed differs in the process that resumes.
    whole, other = run("whole", 1), run("other", 2)
    again = run("again", 2, tmp_path / "whole/epoch=0.ckpt")
    assert all(torch.equal(mask, again[name]) for name, mask in whole.items())
    assert not all(torch.equal(mask, other[name]) for name, mask in whole.items())


def test_a_static_checkpoint_is_resumed_with_updates_from_then_on(tmp_path: Path) -> None:
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    static = PruneAtInit(Random(), density=0.3, on_collapse="warn")
    trainer(tmp_path, static, saving).fit(classifier(), Classes())
    pruning = moving(t_end=1.0)
    trainer(tmp_path, pruning, max_epochs=3, enable_checkpointing=False).fit(
        classifier(), Classes(), ckpt_path=tmp_path / "epoch=0.ckpt"
    )
    # Of 24 steps 8 are done: the updates are those at steps 9, 12, 15, 18 and 21.
    assert pruning._updates.state is not None
    assert (pruning._updates.state.done, pruning.masks.kept) == (5, 164)  # type: ignore[union-attr]


# -- two processes


class Gradients(Callback):
    """Write network, masks and batch of each rank at the second step, and the masks after it."""

    def __init__(self, folder: Path, pruning: PruneAtInit) -> None:
        self.folder, self.pruning = folder, pruning

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 1:
            network: Any = pl_module.network
            weights = {name: p.detach().clone() for name, p in network.named_parameters()}
            assert self.pruning.masks is not None
            self.before = {"weights": weights, "masks": dict(self.pruning.masks), "batch": batch}

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            assert self.pruning.masks is not None
            content = {**self.before, "after": dict(self.pruning.masks)}
            torch.save(content, self.folder / f"step{trainer.global_rank}.pt")


@pytest.mark.usefixtures("one_thread")
@each_method
def test_two_ranks_grow_by_the_gradient_of_both_and_have_equal_masks(
    tmp_path: Path, method: Any
) -> None:
    pruning = moving(method, delta_t=2, t_end=1.0)
    results = two(tmp_path, pruning, Gradients(tmp_path, pruning)).read()
    for part in ("masks", "weights"):
        first, second = (result[part] for result in results)
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert sum(int(mask.sum()) for mask in results[0]["masks"].values()) == 164
    steps = [torch.load(tmp_path / f"step{rank}.pt", weights_only=True) for rank in range(2)]
    network = FC((1, 2, 4), depth=3, width=16)
    network.load_state_dict(steps[0]["weights"])
    assert not torch.equal(steps[0]["batch"][0], steps[1]["batch"][0])
    changed = sum(int((steps[0]["after"][n] ^ m).sum()) for n, m in steps[0]["masks"].items())
    assert changed > 0
    if method is SET:
        return
    losses = [
        nn.functional.cross_entropy(network(images), labels)
        for images, labels in (step["batch"] for step in steps)
    ]
    masks = steps[0]["masks"]
    weights = [network.get_parameter(name) for name in masks]
    gradients = torch.autograd.grad((losses[0] + losses[1]) / 2, weights)
    fraction = 0.3 / 2 * (1 + math.cos(2 * math.pi / 8))  # 8 steps of two ranks
    for (name, mask), weight, gradient in zip(masks.items(), weights, gradients, strict=True):
        expected = by_sorting(weight.detach(), mask, gradient.abs(), fraction)
        assert torch.equal(steps[0]["after"][name], expected)
