"""Tests that every recipe and every overlay trains for one step on generated data."""

import itertools
import math
import os
from collections import Counter
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from synflow_pl.cli.main import run
from synflow_pl.cli.recipes import recipe_folder
from synflow_pl.cli.session import Session
from synflow_pl.data import ImageDataModule
from synflow_pl.prunable_parameters import prunable
from synflow_pl.pruners.sanity import SANITY as SANITY_CLASSES
from synflow_pl.training import PruneAtInit, WarmupCosine
from synflow_pl.training.sharded_masks import local

QUIET = [
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
    "--trainer.accelerator",
    "cpu",
]
CONFIGS = recipe_folder()
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
QUICK = sorted(f"quick/{path.stem}" for path in CONFIGS.glob("quick/*.yaml"))
PRUNERS = sorted(f"pruners/{path.stem}" for path in CONFIGS.glob("pruners/*.yaml"))
# Recipes with 45 million weights, or with images four times as large.
LARGE = [
    recipe for recipe in RECIPES if recipe.endswith("_wrn18") or recipe.startswith("tiny_imagenet")
]
# Folder of the real images; read here because the fixture `folder` changes the variable.
REAL = os.environ.get("SYNFLOW_DATA")
FOLDERS = {
    **{"MNIST": "MNIST", "FashionMNIST": "FashionMNIST", "CIFAR10": "cifar-10-batches-py"},
    **{"CIFAR100": "cifar-100-python", "TinyImageNet": "tiny-imagenet-200"},
}
SANITY = sorted(f"sanity/{path.stem}" for path in CONFIGS.glob("sanity/*.yaml"))
LOGGERS = sorted(f"loggers/{path.stem}" for path in CONFIGS.glob("loggers/*.yaml"))
# Packages that loggers need and that are not dependencies of synflow_pl.
PACKAGES = {"loggers/wandb": "wandb", "loggers/mlflow": "mlflow"}
STRUCTURES = sorted(f"structure/{path.stem}" for path in CONFIGS.glob("structure/*.yaml"))
OPTIMS = sorted(f"optim/{path.stem}" for path in CONFIGS.glob("optim/*.yaml"))
TRAINERS = sorted(f"trainer/{path.stem}" for path in CONFIGS.glob("trainer/*.yaml"))


@pytest.fixture(autouse=True)
def _two_batches_to_score_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score on the first two batches; all classes of Tiny ImageNet would take minutes."""
    whole = ImageDataModule.pruning_batches
    monkeypatch.setattr(
        ImageDataModule,
        "pruning_batches",
        lambda *args, **options: whole(*args, **options)[:2],
    )


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return content


def one_step(*names: str) -> Session:
    """Run one training step of a recipe with overlays, after pruning in at most two rounds.

    Pruners score on one image of each class instead of ten. Layer collapse is allowed: one round of
    magnitude pruning removes FC's first layer at density 0.1.
    """
    args = [part for name in names for part in ("-c", name)] + ["--pruning.on_collapse", "warn"]
    rounds = read(names[-1]).get("pruning", {}).get("rounds", 100) if names[-1] in PRUNERS else 100
    if isinstance(rounds, int) and rounds > 1:
        args += ["--pruning.rounds", "2"]
    if names[-1] in ("pruners/random_smart_ratio", "pruners/random_uniform_plus") and read(
        names[0]
    )["model"]["network"]["class_path"].endswith(".Conv"):
        # The rules keep 0.3 of each or 0.2 of the last linear layer, where these networks have most
        # of their weights.
        args += ["--pruning.density", "0.5"]
    few = ["--data.images_per_class", "1", "--data.batch_size", "4"]
    if "pruners/ntk_sap" in names:
        few += ["--pruning.pruner.images", "2"]
    return run(["fit", *args, *few, "--trainer.fast_dev_run", "1", *QUIET])


def pruning(cli: Session) -> PruneAtInit:
    return next(callback for callback in cli.trainer.callbacks if isinstance(callback, PruneAtInit))


def check(cli: Session) -> None:
    """Check that one step was trained, the density is right, and pruned weights are zero."""
    assert cli.trainer.state.finished
    assert cli.trainer.global_step == 1
    network, masks = cli.model.network, pruning(cli).masks
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    density = Fraction(str(cli.options.pruning.density))
    total = sum(weight.numel() for weight in prunable(network).values())
    if cli.options.pruning.pruner is None:
        assert masks is None
        assert density == 1
        return
    assert masks is not None
    budget = total - math.floor((1 - density) * total)
    if cli.options.pruning.granularity == "weight":
        assert (masks.kept, masks.total) == (budget, total)
    else:  # the budget is met to one group; a unit is a row of one layer and columns of the next
        sizes = [(weight.numel(), len(weight)) for weight in prunable(network).values()]
        unit = max(
            (size + after) / units for (size, units), (after, _) in itertools.pairwise(sizes)
        )
        assert 0 <= budget - masks.kept < max(unit, 0.3 * budget)
    pairs = masks.parameters(network)
    assert all(not local(parameter)[~local(mask)].any() for parameter, mask in pairs)


def test_there_are_recipes_and_overlays() -> None:
    assert {
        "demo",
        "mnist_fc",
        "mnist_conv",
        "cifar10_vgg16",
        "cifar10_vgg19",
        "cifar10_resnet20",
        "cifar10_wrn18",
    } <= set(RECIPES)
    assert {"pruners/dense", "pruners/magnitude", "pruners/random", "pruners/synflow"} <= set(
        PRUNERS
    )
    assert {"optim/warmup_cosine", "optim/no_decay_on_norms"} <= set(OPTIMS)
    assert {"loggers/tensorboard", "loggers/csv"} | PACKAGES.keys() == set(LOGGERS)
    assert {"trainer/ddp", "trainer/fsdp", "trainer/cpu"} <= set(TRAINERS)
    assert {"quick/cifar10_resnet20", "quick/cifar10_vgg11"} == set(QUICK)


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name
        for name in RECIPES + QUICK
    ],
)
def test_every_recipe_trains(recipe: str, folder: Path, generated: None) -> None:
    check(one_step(recipe))


@pytest.mark.parametrize("recipe", ["demo", "cifar10_resnet20"])
def test_the_overlay_for_cpus_changes_neither_masks_nor_shapes_of_a_run(
    recipe: str, folder: Path, generated: None
) -> None:
    alone, overlaid = one_step(recipe), one_step(recipe, "trainer/cpu")
    masks, others = pruning(alone).masks, pruning(overlaid).masks
    assert masks is not None
    assert others is not None
    assert masks.keys() == others.keys()
    assert all(torch.equal(masks[name], others[name]) for name in masks)
    assert (alone.trainer.precision, overlaid.trainer.precision) == ("32-true", "bf16-mixed")
    weights = overlaid.model.network.state_dict()
    assert [value.shape for value in weights.values()] == [
        value.shape for value in alone.model.network.state_dict().values()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_on_the_real_images(recipe: str, folder: Path) -> None:
    needed = FOLDERS.get(read(recipe)["data"]["class_path"].rpartition(".")[2])
    if needed is not None and not (REAL and (Path(REAL) / needed).is_dir()):
        pytest.skip(f"no {needed} in $SYNFLOW_DATA")
    batches = [
        "--data.batch_size",
        "8",
        "--trainer.max_epochs",
        "1",
        "--trainer.limit_train_batches",
        "3",
    ]
    real = ["--data.data_dir", str(REAL)] if needed is not None else []
    cli = run(
        [
            "fit",
            "-c",
            recipe,
            *real,
            "--pruning.rounds",
            "10",
            *batches,
            "--trainer.limit_val_batches",
            "1",
            *QUIET,
        ]
    )
    assert cli.trainer.global_step == 3
    masks = pruning(cli).masks
    assert masks is not None
    assert all(
        not parameter[~mask].any() for parameter, mask in masks.parameters(cli.model.network)
    )
    assert float(cli.trainer.callback_metrics["val/loss"]) > 0


@pytest.mark.parametrize("overlay", PRUNERS + OPTIMS + TRAINERS)
def test_every_overlay_trains(overlay: str, folder: Path, generated: None) -> None:
    check(one_step("mnist_fc", overlay))


@pytest.mark.parametrize("overlay", LOGGERS)
def test_every_logger_s_overlay_trains_or_names_the_missing_package(
    overlay: str,
    folder: Path,
    generated: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = PACKAGES.get(overlay)
    few = [
        "--pruning.rounds",
        "2",
        "--data.batch_size",
        "4",
        "--trainer.limit_train_batches",
        "1",
        "--trainer.limit_val_batches",
        "1",
    ]
    args = ["fit", "-c", "mnist_fc", "-c", overlay, *few, "--trainer.max_epochs", "1", *QUIET]
    if package is not None and find_spec(package) is None:
        with pytest.raises(SystemExit, match="2"):
            run(args)
        *_, last_line = capsys.readouterr().err.strip().splitlines()
        assert last_line.endswith(
            f"needs the package {package}, which is not installed: pip install {package}"
        )
        assert list(folder.iterdir()) == []
        return
    monkeypatch.setenv("WANDB_MODE", "offline")
    kept = run(args).run_folder
    assert kept is not None
    assert {"metrics.csv", "diagnosis.csv", "masks.safetensors"} <= {
        path.name for path in kept.iterdir()
    }
    assert any("tfevents" in path.name for path in kept.iterdir()) == (
        overlay == "loggers/tensorboard"
    )


@pytest.mark.parametrize("overlay", SANITY)
@pytest.mark.parametrize("pruner", ["pruners/snip", "pruners/synflow"])
def test_every_sanity_check_combines_with_a_pruner_s_overlay(
    overlay: str, pruner: str, folder: Path, generated: None
) -> None:
    cli = one_step("mnist_fc", pruner, overlay)
    check(cli)
    assert type(pruning(cli).pruner) is SANITY_CLASSES[overlay.removeprefix("sanity/")]


@pytest.mark.parametrize("overlay", STRUCTURES)
@pytest.mark.parametrize("pruner", ["pruners/snip", "pruners/synflow_auto"])
def test_every_structure_combines_with_a_pruner_s_overlay(
    overlay: str, pruner: str, folder: Path, generated: None
) -> None:
    """The density is that of the recipe, or what N:M sets."""
    cli = one_step("mnist_conv", overlay, pruner)
    masks = pruning(cli).masks
    assert masks is not None
    expected = 0.5 if "two_of_four" in overlay else read("mnist_conv")["pruning"]["density"]
    assert masks.density == pytest.approx(expected, rel=0.15)


def combinations() -> list[tuple[str, str | None, str]]:
    """Return every recipe with a quarter of the pruners' overlays, and the optimiser's in turn.

    Neighbouring recipes, which have similar networks, have other quarters.
    """
    optims = [None, *OPTIMS]
    pairs = itertools.product(enumerate(RECIPES), enumerate(PRUNERS))
    return [
        (recipe, optims[(i + j // 4) % len(optims)], pruner)
        for (i, recipe), (j, pruner) in pairs
        if (i + j) % 4 == 0
    ]


def test_each_optimiser_is_tried_with_every_recipe_and_every_pruner() -> None:
    tried = combinations()
    optims = [None, *OPTIMS]
    assert {combination[:2] for combination in tried} == set(itertools.product(RECIPES, optims))
    assert {combination[1:] for combination in tried} == set(itertools.product(optims, PRUNERS))
    for index, names in ((0, RECIPES), (2, PRUNERS)):
        times = Counter(combination[index] for combination in tried)
        assert min(times[name] for name in names) >= 5


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "optim", "pruner"), combinations())
def test_a_recipe_trains_with_overlays_of_optimiser_and_pruner(
    recipe: str, optim: str | None, pruner: str, folder: Path, generated: None
) -> None:
    check(one_step(recipe, *([optim] if optim else []), pruner))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_defines_the_training_and_only_the_density_of_pruning(recipe: str) -> None:
    content = read(recipe)
    assert content.keys() == {"model", "data", "pruning", "trainer"}
    assert content["pruning"].keys() == {"density"}
    assert 0 < content["pruning"]["density"] <= 0.1


@pytest.mark.parametrize("overlay", PRUNERS)
def test_a_pruner_s_overlay_sets_the_pruner_and_its_rounds(overlay: str) -> None:
    content = read(overlay)
    assert content.keys() == {"pruning"}
    assert {"pruner", "rounds"} <= content["pruning"].keys()


@pytest.mark.parametrize(
    "name", RECIPES + QUICK + PRUNERS + STRUCTURES + SANITY + OPTIMS + LOGGERS + TRAINERS
)
def test_every_file_starts_with_a_comment_that_describes_it(name: str) -> None:
    first = (CONFIGS / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")


def test_no_decay_on_norms_decays_weights_only(folder: Path, generated: None) -> None:
    optimizer = one_step("cifar10_resnet20", "optim/no_decay_on_norms").trainer.optimizers[0]
    decayed, spared = optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-4, 0)
    assert {parameter.dim() for parameter in decayed["params"]} == {2, 4}
    assert {parameter.dim() for parameter in spared["params"]} == {1}
    # Weights of 20 layers and 2 shortcuts; gain and shift of 21 normalisations, and the
    # classifier's bias.
    assert (len(decayed["params"]), len(spared["params"])) == (22, 43)


def test_warmup_cosine_replaces_the_recipe_s_schedule_and_gets_the_number_of_epochs(
    folder: Path, generated: None
) -> None:
    cli = one_step("mnist_fc", "optim/warmup_cosine")
    scheduler = cli.trainer.lr_scheduler_configs[0].scheduler
    assert isinstance(scheduler, WarmupCosine)
    assert (
        cli.options.model.scheduler.init_args == {"warmup": 5, "epochs": 20}
        or cli.options.model.scheduler.init_args.epochs == 20
    )


def test_a_run_does_not_depend_on_the_random_state_before_it(folder: Path, generated: None) -> None:
    first = one_step("mnist_fc").model.network.state_dict()
    torch.rand(7)
    again = one_step("mnist_fc").model.network.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
