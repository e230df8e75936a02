"""Trainings that ``test_sharded*.py`` start in several processes, and repeat in one.

``python -m torch.distributed.run --nproc_per_node N sharded_jobs.py FOLDER JOB...`` runs jobs of
this file one after another.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from synflow_pl import Classifier, PruneAtInit
from synflow_pl.data import Digits
from synflow_pl.networks import Conv
from synflow_pl.pruners import LAMP, SNIP, Magnitude, Pruner, Random, SynFlow
from synflow_pl.training import (
    DurableCheckpointIO,
    FullyShardStrategy,
    LastCheckpoint,
    find_checkpoint,
)
from synflow_pl.training.sharded_masks import local, named_shards

PRUNERS: dict[str, Callable[[], Pruner]] = {
    "SynFlow": SynFlow,
    "SNIP": SNIP,
    "Magnitude": Magnitude,
    "Random": lambda: Random(seed=5),
}
OPTIMIZERS: dict[str, Any] = {
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
    ),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
}
FAST = [
    ("SynFlow", "nesterov"),
    ("SNIP", "adamw"),
    ("Magnitude", "adamw"),
    ("Random", "nesterov"),
]
STEPS, MIDDLE = 50, 13


class Few(Digits):
    """Digits with 320 augmented training images: 10 batches of 32."""

    crop_padding = 2

    def __init__(self) -> None:
        super().__init__(batch_size=32, val_size=5000 - 320)


class Watch(Callback):
    """Check after each step that pruned weights of this rank are +0.0, and what is logged."""

    def __init__(self) -> None:
        self.checked = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
        pruning = next(callback for callback in callbacks if isinstance(callback, PruneAtInit))
        shards = named_shards(pl_module.network)  # type: ignore[arg-type]
        for name, mask in pruning.masks.items():
            pruned = local(shards[name])[~local(mask)]
            assert not pruned.any()
            assert not pruned.signbit().any()
            self.checked += pruned.numel()


class Save(Callback):
    """Save a checkpoint after some steps."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path, weights_only=False)


def network() -> nn.Module:
    """Return a network whose layers have 5, 5 and 10 units, which 2 ranks cannot divide evenly."""
    conv = Conv((1, 28, 28), width=5).double()
    conv.layers.insert(0, Double())
    return conv


class Double(nn.Module):
    """Convert images to float64, in which ranks and one process differ by less than 1e-12.

    In float32, AdamW and ReLU turn rounding errors into visible differences after a few steps.
    """

    def forward(self, images: Tensor) -> Tensor:
        return images.double()


def classifier(optimizer: str) -> Classifier:
    seed_everything(3)
    return Classifier(network(), optimizer=OPTIMIZERS[optimizer])


def trainer(*callbacks: Callback, strategy: Any = "auto", **options: Any) -> Trainer:
    settings = {
        "max_steps": STEPS,
        "max_epochs": -1,
        "devices": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "gradient_clip_val": 0.5,
        "limit_val_batches": 0,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **options,
    }
    run = Trainer(callbacks=list(callbacks), strategy=strategy, **settings)
    run.strategy.checkpoint_io = DurableCheckpointIO()
    return run


def sharding(*, distributed: bool = False) -> Any:
    """Return the strategy under which a job trains: one that shards, in several processes."""
    alone = "LOCAL_WORLD_SIZE" not in os.environ
    return "auto" if alone else FullyShardStrategy(save_distributed_checkpoint=distributed)


def like_one(folder: Path) -> None:
    """Train with each pruner and one optimiser, and save the last weights and masks."""
    train_pairs(folder, FAST)


def like_one_too(folder: Path) -> None:
    """Train with each pruner and the other optimiser."""
    train_pairs(folder, [(p, o) for p in PRUNERS for o in OPTIMIZERS if (p, o) not in FAST])


def train_pairs(folder: Path, pairs: list[tuple[str, str]]) -> None:
    for name, optimizer in pairs:
        rounds = 5 if name == "SynFlow" else None
        watch, pruning = Watch(), PruneAtInit(PRUNERS[name](), density=0.2, rounds=rounds)
        module = classifier(optimizer)
        if os.environ.get("RANK") == "1":  # other weights; those of rank 0 count
            nn.init.zeros_(module.network.layers[1].weight)  # type: ignore[union-attr]
        run = trainer(pruning, watch, strategy=sharding())
        run.fit(module, Few())
        assert watch.checked
        run.save_checkpoint(folder / f"{name}-{optimizer}.ckpt", weights_only=False)


def resumed(folder: Path, saved: Path | None = None) -> None:
    """Train, save distributed checkpoints in the middle and at the end, and resume the first."""
    strategy = sharding(distributed=True)
    pruning = PruneAtInit(SynFlow(), density=0.2, rounds=5)
    run = trainer(pruning, Watch(), Save(folder / "middle.ckpt", MIDDLE), strategy=strategy)
    run.fit(classifier("adamw"), Few())
    run.save_checkpoint(folder / "end.ckpt", weights_only=False)
    resume(folder, folder / "middle.ckpt", "again.ckpt")


def resume(folder: Path, path: Path, name: str) -> None:
    """Resume a checkpoint to the end with another density, which must not matter, and save it."""
    pruning, watch = PruneAtInit(Magnitude(), density=0.5), Watch()
    run = trainer(pruning, watch, strategy=sharding(distributed=True))
    module = classifier("adamw")
    nn.init.ones_(module.network.layers[1].weight)  # type: ignore[union-attr]
    run.fit(module, Few(), ckpt_path=path)
    assert watch.checked
    run.save_checkpoint(folder / name, weights_only=False)


class Steps(Callback):
    """Write the number of steps to a file after each step, on rank 0."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.is_global_zero:
            self.path.write_text(str(trainer.global_step))


def interrupted(folder: Path) -> None:
    """Train from the last checkpoint, if there is one, to the end, which is saved."""
    try:
        path = find_checkpoint(folder / "run")
    except FileNotFoundError:
        path = None
    run = trainer(
        PruneAtInit(SynFlow(), density=0.2, rounds=5),
        Watch(),
        LastCheckpoint(every=2, folder=folder / "run/checkpoints"),
        Steps(folder / "steps"),
        strategy=sharding(distributed=True),
        enable_checkpointing=True,
    )
    run.fit(classifier("adamw"), Few(), ckpt_path=path)
    run.save_checkpoint(folder / "end.ckpt", weights_only=False)


def rewritten(folder: Path) -> None:
    """Fill the weights of each rank's shards with ones before each epoch, and test afterwards."""

    class Ones(Callback):
        @torch.no_grad()
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            for parameter in pl_module.network.parameters():  # type: ignore[union-attr]
                local(parameter).fill_(1)

    pruning = PruneAtInit(Magnitude(), density=0.2)
    run = trainer(Ones(), pruning, Watch(), strategy=sharding(distributed=True), max_steps=12)
    run.fit(module := classifier("nesterov"), Few())
    run.save_checkpoint(folder / "end.ckpt", weights_only=False)
    kept = pruning.masks.kept  # type: ignore[union-attr]
    run.test(module, Few(), ckpt_path=folder / "end.ckpt", verbose=False)
    assert pruning.masks.kept == kept  # type: ignore[union-attr]
    pruning.masks.save(folder / "masks.safetensors")  # type: ignore[union-attr]


def memory(folder: Path) -> None:
    """Write the bytes of all tensors of this rank, in a pruned and in an unpruned training."""

    class Count(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            if trainer.global_step == 3:
                gc.collect()
                storages = {
                    local(tensor).untyped_storage().data_ptr(): local(tensor).untyped_storage()
                    for tensor in gc.get_objects()
                    if isinstance(tensor, Tensor) and tensor.device.type == "cpu"
                }
                self.bytes = sum(storage.nbytes() for storage in storages.values())
                parameters = named_shards(pl_module.network).items()  # type: ignore[arg-type]
                self.weights = sum(local(p).numel() for n, p in parameters if n.endswith("weight"))

    results = []
    for pruner in (None, SynFlow()):
        options = {} if pruner is None else {"density": 0.2, "rounds": 3}
        run = trainer(
            PruneAtInit(pruner, **options), count := Count(), strategy=sharding(), max_steps=4
        )
        run.fit(classifier("nesterov"), Few())
        results.append((count.bytes, count.weights))
        del run
    torch.save(results, folder / f"memory-{os.environ['RANK']}.pt")


class Block(nn.Module):
    """Transformer-like residual block of two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return moved


class Blocks(nn.Module):
    """Two blocks between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(784, 12), nn.Linear(12, 10)
        self.blocks = nn.ModuleList(Block(12) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images.flatten(1).to(self.head.weight.dtype))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


class Parallel(Classifier):
    """Classifier with tensor-parallel blocks, sharded over the data-parallel ranks if any."""

    def configure_model(self) -> None:
        if self.device_mesh is None:
            return
        data, tensor = self.device_mesh["data_parallel"], self.device_mesh["tensor_parallel"]
        plan: Any = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        for block in self.network.blocks:  # type: ignore[union-attr]
            parallelize_module(block, tensor, plan)
            if data.size() > 1:
                fully_shard(block, mesh=data)
        if data.size() > 1:
            fully_shard(self.network, mesh=data)


def tensor_parallel(folder: Path) -> None:
    """Train with tensor parallelism, with four processes in two groups, and resume."""
    world = int(os.environ.get("WORLD_SIZE", "1"))

    def strategy() -> Any:
        return ModelParallelStrategy(world // 2, 2) if world > 1 else "auto"

    def module() -> Classifier:
        seed_everything(3)
        return Parallel(Blocks().double(), optimizer=OPTIMIZERS["adamw"])

    pruning = PruneAtInit(SynFlow(), density=0.3, rounds=5)
    save = Save(folder / "middle.ckpt", MIDDLE)
    run = trainer(pruning, Watch(), save, strategy=strategy())
    run.fit(module(), Few())
    run.save_checkpoint(folder / "end.ckpt", weights_only=False)
    run = trainer(PruneAtInit(SynFlow(), density=0.9), Watch(), strategy=strategy())
    run.fit(module(), Few(), ckpt_path=folder / "middle.ckpt")
    run.save_checkpoint(folder / "again.ckpt", weights_only=False)


PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")


class Recomputed(Classifier):
    """Classifier with activation checkpointing of its blocks."""

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            apply_activation_checkpointing(
                self.network, check_fn=lambda module: isinstance(module, Block)
            )
        super().configure_model()


def combined(folder: Path) -> None:
    """Train in each precision with accumulation, and with checkpointing and compiled blocks too."""
    alone, compile = "LOCAL_WORLD_SIZE" not in os.environ, torch.compile
    # The C++ compilation of inductor takes a minute.
    torch.compile = functools.partial(compile, backend="aot_eager")
    for precision in PRECISIONS:
        for kind, name in ((Classifier, "plain"), (Recomputed, "all"))[: 1 if alone else 2]:
            seed_everything(3)
            torch._dynamo.reset()
            compiled = torch._dynamo.utils.counters["stats"]
            compiled.clear()
            module = kind(Blocks(), optimizer=OPTIMIZERS["nesterov"], compile=name == "all")
            run = trainer(
                PruneAtInit(SynFlow(), density=0.3, rounds=5),
                watch := Watch(),
                strategy=sharding(distributed=True),
                accumulate_grad_batches=2,
                precision=precision,
                max_steps=10,
            )
            run.fit(module, Few())
            assert watch.checked
            assert bool(compiled["unique_graphs"]) == (name == "all")
            run.save_checkpoint(folder / f"{precision}-{name}.ckpt", weights_only=False)
    torch.compile = compile


class Meta(Classifier):
    """Classifier whose network is created on the meta device and never whole."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), optimizer=OPTIMIZERS["nesterov"])

    def configure_model(self) -> None:
        with torch.device("meta"):
            self.network = Blocks()
        assert self.device_mesh is not None
        for block in self.network.blocks:
            fully_shard(block, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.network, mesh=self.device_mesh["data_parallel"])


class Weights(Callback):
    """Round and save the weights before the network is pruned, so that many scores are equal."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        whole = {}
        for name, parameter in pl_module.network.named_parameters():  # type: ignore[union-attr]
            shard = local(parameter)
            torch.manual_seed(trainer.global_rank)
            shard.copy_(torch.randint(-9, 10, shard.shape))
            whole[name] = parameter.full_tensor()  # type: ignore[operator]
        if trainer.is_global_zero:
            torch.save(whole, self.path)


SHARDWISE: dict[str, tuple[Pruner, dict[str, Any]]] = {
    "magnitude": (Magnitude(), {"density": 0.3}),
    "magnitude-local": (Magnitude(), {"density": 0.3, "scope": "local"}),
    "magnitude-kept": (Magnitude(), {"num_kept": 777, "exclude": ["head.*"]}),
    "lamp": (LAMP(), {"density": 0.21}),
    "random": (Random(seed=1), {"density": 0.3}),
    "random-erk": (Random(seed=1, quota="erk"), {"density": 0.3}),
}


def never_whole(folder: Path) -> None:
    """Prune networks that no rank holds whole, and save their weights before and after."""
    for name, (pruner, options) in SHARDWISE.items():
        weights = Weights(folder / f"{name}.pt")
        pruning = PruneAtInit(pruner, **options)
        run = trainer(weights, pruning, Watch(), strategy=sharding(), max_steps=2)
        run.fit(Meta(), Few())
        run.save_checkpoint(folder / f"{name}.ckpt", weights_only=False)
    try:
        trainer(PruneAtInit(SynFlow(), density=0.5), strategy=sharding()).fit(Meta(), Few())
    except ValueError as error:
        (folder / f"refused-{os.environ['RANK']}").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    for job in sys.argv[2:]:
        job_name, _, argument = job.partition("=")
        inside = target / job_name
        inside.mkdir(parents=True, exist_ok=True)
        if argument:
            resume(inside, Path(argument), "again.ckpt")
        else:
            globals()[job_name](inside)
    # A thread of gloo that frees a tensor while the interpreter is finalised aborts the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
