"""Tests of the command line: parsing, defaults that follow from the data, and a run's files."""

import contextlib
import csv
import io
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

import synflow_pl
from synflow_pl.__main__ import main
from synflow_pl.cli.main import run
from synflow_pl.cli.run_opening import CLAIMED
from synflow_pl.cli.session import Session
from synflow_pl.data import Digits
from synflow_pl.masks import Masks
from synflow_pl.networks import FC
from synflow_pl.training import PruneAtInit, load_weights

Built = Callable[..., Session]
QUIET = [
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
    "--trainer.accelerator",
    "cpu",
]
SHORT = [
    "--trainer.max_epochs",
    "1",
    "--trainer.limit_train_batches",
    "3",
    "--trainer.limit_val_batches",
    "1",
    *QUIET,
]
FC_ON_DIGITS = ["--model.network", "FC", "--data", "Digits"]


def printed(*args: str) -> str:
    """Return the output of a command that exits without running a subcommand."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as raised:
        run(list(args))
    assert raised.value.code == 0
    return out.getvalue()


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# -- help and version


def test_help_fits_on_a_few_screens_and_names_only_classes_of_the_package() -> None:
    text = printed("fit", "--help")
    assert len(text.splitlines()) < 250
    for name in ("FC", "Conv", "VGG", "ResNet", "SynFlow", "Magnitude", "Digits", "CIFAR10"):
        assert re.search(rf"\b{name}\b", text), name
    # Of torch.nn only the default loss is named.
    assert set(re.findall(r"torch\.nn\.\w+", text)) <= {"torch.nn.CrossEntropyLoss"}
    for name in ("BatchNorm2d", "TransformerEncoder", "ReLU6", "AdaptiveAvgPool2d"):
        assert name not in text


def test_help_names_every_option_of_pruning() -> None:
    text = printed("fit", "--help")
    for option in (
        "pruner",
        "density",
        "num_kept",
        "rounds",
        "schedule",
        "scope",
        "mask_bias",
        "mask_norm",
        "exclude",
        "train_mode",
        "fresh_batches",
        "sanity",
        "masks_path",
        "on_collapse",
        "at_epoch",
        "score_from",
        "effective_density",
    ):
        assert f"--pruning.{option}" in text
    assert "--run" in text
    assert "--data" in text


@pytest.mark.parametrize(
    ("network", "help_text"),
    [
        ("VGG", "Whether a BatchNorm follows each convolution"),
        ("TorchVision", "name of trained weights"),
    ],
)
def test_the_help_of_a_short_class_name_describes_the_arguments_of_the_package_s_class(
    network: str, help_text: str
) -> None:
    assert (
        help_text.lower()
        in " ".join(printed("fit", "--model.network.help", network).split()).lower()
    )


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_the_help_lists_all_four_subcommands(subcommand: str) -> None:
    assert re.search(rf"^ +{subcommand}\b", printed("--help"), re.MULTILINE)


def test_the_version_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "synflow_pl", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert done.stdout == f"synflow_pl {synflow_pl.__version__}\n"
    assert "synflow_pl" in imported
    assert not {"torch", "pytorch_lightning", "jsonargparse", "numpy"} & imported


# -- what the options mean


def test_the_seed_is_zero_unless_given(built: Built) -> None:
    assert built("fit", "-c", "mnist_fc").options.seed_everything == 0
    assert built("fit", "-c", "mnist_fc", "--seed_everything", "7").options.seed_everything == 7


def test_two_commands_build_the_same_network(built: Built) -> None:
    first, again, other = (
        built("fit", "-c", "mnist_fc", *seed).model.network
        for seed in ([], [], ["--seed_everything", "1"])
    )
    name = "layers.1.weight"
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_recipes_compose_and_later_settings_override_earlier_ones(built: Built) -> None:
    options = built(
        "fit", "-c", "mnist_fc", "-c", "pruners/magnitude", "--pruning.density", "0.01", *SHORT
    ).options
    assert options.model.network.class_path == "synflow_pl.networks.FC"
    assert options.data.class_path == "synflow_pl.data.MNIST"
    assert options.pruning.pruner.class_path == "synflow_pl.pruners.Magnitude"
    assert (options.pruning.density, options.pruning.rounds) == (0.01, 1)
    assert options.trainer.max_epochs == 1
    # No overlay or option overrides the recipe's learning rate.
    assert options.model.optimizer.init_args.lr == 0.05


@pytest.mark.parametrize(
    ("overlays", "pruner", "rounds"),
    [
        (["pruners/synflow", "pruners/magnitude"], "synflow_pl.pruners.Magnitude", 1),
        (["pruners/magnitude", "pruners/synflow"], "synflow_pl.pruners.SynFlow", 100),
        (["pruners/synflow", "pruners/random"], "synflow_pl.pruners.Random", 1),
        (["pruners/synflow", "pruners/synflow_auto"], "synflow_pl.pruners.SynFlow", "auto"),
        (["pruners/synflow_auto", "pruners/magnitude"], "synflow_pl.pruners.Magnitude", 1),
        (["pruners/magnitude"], "synflow_pl.pruners.Magnitude", 1),
    ],
)
def test_an_overlay_of_a_pruner_replaces_the_previous_one_completely(
    overlays: list[str], pruner: str, rounds: int | str, built: Built
) -> None:
    pruning = built(
        "fit", "-c", "mnist_fc", *(part for name in overlays for part in ("-c", name))
    ).options.pruning
    assert (pruning.pruner.class_path, pruning.rounds, pruning.density) == (pruner, rounds, 0.1)


@pytest.mark.parametrize(
    ("overlays", "train_mode", "fresh_batches"),
    [
        (["pruners/force"], True, True),
        (["pruners/snip_iterative"], True, True),
        (["pruners/grasp"], True, False),
        (["pruners/snip"], False, False),
        (["pruners/force", "pruners/snip"], False, False),
        (["pruners/snip_iterative", "pruners/grasp"], True, False),
        (["pruners/grasp", "pruners/grasp_inverted"], False, False),
    ],
)
def test_overlays_score_in_the_mode_and_on_the_batches_of_their_papers(
    overlays: list[str], train_mode: bool, fresh_batches: bool, built: Built
) -> None:
    args = [part for name in overlays for part in ("-c", name)]
    pruning = built("fit", "-c", "mnist_fc", *args).options.pruning
    assert (pruning.train_mode, pruning.fresh_batches) == (train_mode, fresh_batches)
    pruning = built(
        "fit",
        "-c",
        "mnist_fc",
        *args,
        "--pruning.train_mode",
        "false",
        "--pruning.fresh_batches",
        "false",
    ).options.pruning
    assert (pruning.train_mode, pruning.fresh_batches) == (False, False)


def test_the_dense_overlay_prunes_nothing(built: Built) -> None:
    pruning = built(
        "fit", "-c", "mnist_fc", "-c", "pruners/synflow", "-c", "pruners/dense"
    ).options.pruning
    assert (pruning.pruner, pruning.density, pruning.rounds) == (None, 1, None)


@pytest.mark.parametrize(
    "form", [["--config", "mnist_fc"], ["--config=mnist_fc"], ["-c", "configs/mnist_fc.yaml"]]
)
def test_a_recipe_may_be_given_in_any_form(form: list[str], built: Built) -> None:
    assert built("fit", *form).options.trainer.max_epochs == 20


def test_a_short_class_name_means_a_class_of_the_package(built: Built) -> None:
    # torchvision, which is imported by then, has a VGG and a ResNet too.
    options = built(
        "fit",
        "--model.network",
        "VGG",
        "--model.network.depth=11",
        "--data=CIFAR10",
        "--pruning.density=0.5",
    ).options
    assert options.model.network.class_path == "synflow_pl.networks.VGG"
    assert options.model.network.init_args.depth == 11


def test_the_nonlinearity_is_given_by_its_class_path(built: Built) -> None:
    network = built(
        "fit", "-c", "mnist_fc", "--model.network.nonlinearity", "torch.nn.Tanh"
    ).model.network
    assert sum(isinstance(module, torch.nn.Tanh) for module in network.modules()) == 5


# -- defaults that follow from the data


@pytest.mark.parametrize(("data", "shape"), [("Digits", (1, 28, 28)), ("CIFAR10", (3, 32, 32))])
@pytest.mark.parametrize("network", ["FC", "Conv", "VGG", "ResNet"])
def test_the_data_s_shape_and_classes_reach_the_network(
    network: str, data: str, shape: tuple[int, int, int], built: Built
) -> None:
    depth = ["--model.network.depth", "11"] if network == "VGG" else []
    cli = built(
        "fit", "--model.network", network, *depth, "--data", data, "--pruning.density", "0.1"
    )
    init_args = cli.options.model.network.init_args
    assert (tuple(init_args.input_shape), init_args.num_classes) == (shape, 10)
    with torch.no_grad():
        assert cli.model.network.eval()(torch.zeros(1, *shape)).shape == (1, 10)


@pytest.mark.parametrize(
    "network",
    [
        "TinyVGG --model.network.depth 11",
        "TinyResNet",
        "TorchVision --model.network.name resnet18",
        "TorchVision --model.network.name vit_b_16",
        "Timm --model.network.name resnet10t",
        "Timm --model.network.name vit_tiny_patch16_224 --model.network.options.patch_size 8",
    ],
)
def test_the_data_s_shape_and_classes_reach_the_larger_networks(network: str, built: Built) -> None:
    if network.startswith("Timm"):
        pytest.importorskip("timm")
    module = built(
        "fit", "--model.network", *network.split(), "--data", "CIFAR10", "--pruning.density", "0.1"
    ).model.network
    with torch.no_grad():
        assert module.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert getattr(module, "patch_embed", None) is None or module.patch_embed.num_patches == 16


@pytest.mark.parametrize(
    ("network", "pattern"),
    [
        ("VGG --model.network.depth 11", "fc.*"),
        ("ResNet", "[fc.*]"),
        ("TinyResNet", "[fc.*,conv.*]"),
    ],
)
def test_the_classifier_stays_dense_if_excluded(
    network: str, pattern: str, folder: Path, generated: None
) -> None:
    arguments = [
        "fit",
        "--model.network",
        *network.split(),
        "--data",
        "CIFAR10",
        "--pruning.density",
        "0.1",
        "--pruning.rounds",
        "2",
    ]
    cli = run(
        [
            *arguments,
            "--pruning.exclude",
            pattern,
            *SHORT,
            "--trainer.fast_dev_run",
            "1",
            "--data.batch_size",
            "4",
        ]
    )
    masks = next(callback for callback in cli.callbacks if isinstance(callback, PruneAtInit)).masks
    assert "fc.weight" not in masks
    assert cli.model.network.fc.weight.all()
    assert ("conv.weight" in masks) == (network == "ResNet")
    assert masks.density == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("network", ["ResNet", "TinyResNet"])
def test_residual_gains_are_pruned_and_not_trained(
    network: str, folder: Path, generated: None
) -> None:
    arguments = [
        "fit",
        "--model.network",
        network,
        "--model.network.residual_gains",
        "true",
        "--data",
        "CIFAR10",
    ]
    short = [
        "--pruning.density",
        "0.05",
        "--pruning.rounds",
        "3",
        "--data.batch_size",
        "4",
        "--trainer.fast_dev_run",
        "2",
        *QUIET,
    ]
    cli = run([*arguments, *short])
    masks = next(callback for callback in cli.callbacks if isinstance(callback, PruneAtInit)).masks
    gains = {
        name: p
        for name, p in cli.model.network.named_parameters()
        if name.endswith("shortcut.weight")
    }
    assert gains.keys() <= masks.keys()
    assert not all(masks[name].all() for name in gains)
    assert all(torch.equal(gain, masks[name].float()) for name, gain in gains.items())


# -- weights from a file


def test_a_network_starts_from_the_weights_of_a_file(built: Built, folder: Path) -> None:
    state = {name: torch.full_like(tensor, 0.25) for name, tensor in FC().state_dict().items()}
    torch.save(state, folder / "weights.pt")
    network = built("fit", "-c", "mnist_fc", "--network_weights", "weights.pt").model.network
    assert all((parameter == 0.25).all() for parameter in network.parameters())


def test_weights_of_another_network_are_refused_before_a_run_is_opened(
    built: Built, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(FC(width=50).state_dict(), folder / "weights.pt")
    with pytest.raises(SystemExit):
        built("fit", "-c", "mnist_fc", "--network_weights", "weights.pt")
    assert (
        "'weights.pt' does not fit FC: layers.1.weight (and 10 more) is (50, 784) in the file and "
        "(100, 784)" in capsys.readouterr().err
    )
    assert not (folder / "lightning_logs").exists()


def test_the_weights_of_another_network_that_fit_can_be_loaded(built: Built, folder: Path) -> None:
    torch.save(FC(num_classes=7).state_dict(), folder / "weights.pt")
    with pytest.warns(UserWarning, match=r"fills 10 of 12 tensors of FC: layers\.11\.weight"):
        built(
            "fit",
            "-c",
            "mnist_fc",
            "--network_weights",
            "weights.pt",
            "--network_weights_strict",
            "false",
        )


def test_an_explicit_number_of_classes_is_kept(built: Built) -> None:
    network = built("fit", "-c", "mnist_fc", "--model.network.num_classes", "12").model.network
    assert network(torch.zeros(1, 1, 28, 28)).shape == (1, 12)


def test_a_user_s_network_in_the_working_directory_needs_no_arguments(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "my_plain_network.py").write_text(
        "from torch import nn\n\n\nclass Plain(nn.Sequential):\n"
        "    def __init__(self):\n        super().__init__(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    # Unlike `python -m`, the console script does not have the working directory in sys.path.
    monkeypatch.setattr(
        sys, "path", [entry for entry in sys.path if entry not in ("", ".", str(folder))]
    )
    arguments = [
        "fit",
        "--model.network",
        "my_plain_network.Plain",
        "--data",
        "Digits",
        "--pruning.density",
        "0.1",
        "--run",
        "own",
    ]
    monkeypatch.setattr(sys, "argv", ["synflow_pl", *arguments, "--pruning.rounds", "2", *SHORT])
    try:
        main()
    finally:
        sys.modules.pop("my_plain_network", None)
    masks = Masks.load(folder / "lightning_logs" / "own" / "masks.safetensors")
    assert list(masks) == ["1.weight"]
    assert masks.kept == 784


# -- the configuration


def test_a_printed_configuration_is_complete(folder: Path) -> None:
    text = printed(
        "fit",
        "-c",
        "mnist_fc",
        "-c",
        "pruners/magnitude",
        "--pruning.density",
        "0.01",
        "--print_config",
    )
    content = yaml.safe_load(text)
    assert content["pruning"]["density"] == 0.01
    assert content["pruning"]["pruner"]["class_path"] == "synflow_pl.pruners.Magnitude"
    assert content["pruning"]["scope"] == "global"
    assert content["data"]["init_args"]["batch_size"] == 128
    assert content["seed_everything"] == 0
    assert content["trainer"]["max_epochs"] == 20


@pytest.mark.parametrize("recipe", ["mnist_fc", "cifar10_resnet20"])
def test_a_printed_configuration_parses_to_the_same_configuration(
    recipe: str, folder: Path
) -> None:
    first = printed(
        "fit",
        "-c",
        recipe,
        "-c",
        "optim/warmup_cosine",
        "--pruning.density",
        "0.01",
        "--print_config",
    )
    (folder / "printed.yaml").write_text(first)
    assert printed("fit", "-c", "printed.yaml", "--print_config") == first


# -- the run


def test_a_run_is_named_by_recipe_pruner_density_and_seed(built: Built) -> None:
    cli = built(
        "fit",
        "-c",
        "mnist_fc",
        "-c",
        "pruners/magnitude",
        "--pruning.density",
        "0.01",
        "--seed_everything",
        "3",
    )
    assert cli.run_folder == Path("lightning_logs/mnist_fc-magnitude-density0.01-seed3")
    assert cli.run_folder.is_dir()


@pytest.mark.parametrize(
    ("options", "amount"),
    [
        (["--pruning.density", "null", "--pruning.flops", "0.25"], "flops0.25"),
        (["-c", "structure/units"], "unit-density0.1"),
        (["-c", "structure/two_of_four"], "2_4"),
        (["--pruning.density", "null", "--pruning.effective_density", "0.1"], "effective0.1"),
    ],
)
def test_a_run_is_named_by_its_granularity_and_budget(
    options: list[str], amount: str, built: Built
) -> None:
    cli = built("fit", "-c", "mnist_fc", *options)
    assert cli.run_folder.name == f"mnist_fc-synflow-{amount}-seed0"


def test_the_trainer_can_be_pickled_for_spawned_processes(built: Built) -> None:
    # The strategy ddp_spawn pickles the trainer with its callbacks and the parsed command.
    cli = built("fit", *FC_ON_DIGITS, "--pruning.density", "0.1")
    assert pickle.loads(pickle.dumps(cli.trainer)).max_epochs == cli.trainer.max_epochs


def test_a_run_without_a_recipe_is_named_by_data_and_network(built: Built) -> None:
    assert built("fit", *FC_ON_DIGITS, "--pruning.num_kept", "500").run_folder == Path(
        "lightning_logs/digits_fc-synflow-kept500-seed0"
    )


def test_a_run_of_a_torchvision_network_is_named_by_the_architecture(built: Built) -> None:
    arguments = [
        "--model.network",
        "TorchVision",
        "--model.network.name",
        "resnet18",
        "--data",
        "CIFAR10",
        "--pruning.density",
        "0.2",
    ]
    assert built("fit", *arguments).run_folder.name == "cifar10_resnet18-synflow-density0.2-seed0"


def test_further_runs_of_the_same_name_are_numbered(built: Built) -> None:
    names = [built("fit", "-c", "mnist_fc", "--run", "again").run_folder for _ in range(3)]
    assert [folder.name for folder in names if folder] == ["again", "again-2", "again-3"]


def test_fast_dev_run_leaves_nothing_behind(folder: Path, generated: None) -> None:
    run(["fit", "-c", "mnist_fc", "--pruning.rounds", "2", "--trainer.fast_dev_run", "1", *QUIET])
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "kinds"),
    [
        ([], [CSVLogger, TensorBoardLogger]),
        (["true"], [CSVLogger, TensorBoardLogger]),
        (["false"], [CSVLogger]),
    ],
)
def test_csv_is_always_logged(option: list[str], kinds: list[type], built: Built) -> None:
    loggers = built(
        "fit", "-c", "mnist_fc", *(["--trainer.logger", *option] if option else [])
    ).trainer.loggers
    assert [isinstance(logger, kind) for logger, kind in zip(loggers, kinds, strict=True)] == [
        True
    ] * len(kinds)


# The following tests inspect a short run, and then evaluate and resume it.

# 5 % of FC's 119,400 weights: 119,400 - floor(0.95 * 119,400).
KEPT = 119_400 - 113_430


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Yield the folder of a short run and its output, in the working directory of the run."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fitted"))
        patch.setenv(CLAIMED, "")
        with contextlib.redirect_stdout(out):
            cli = run(
                [
                    "fit",
                    *FC_ON_DIGITS,
                    "--pruning.density",
                    "0.05",
                    "--pruning.rounds",
                    "20",
                    "--run",
                    "real",
                    *SHORT,
                ]
            )
        assert cli.run_folder is not None
        yield cli.run_folder.absolute(), out.getvalue()


def test_a_run_holds_its_configuration_metrics_events_masks_and_checkpoints(
    fitted: tuple[Path, str],
) -> None:
    folder, _ = fitted
    assert folder.parts[-2:] == ("lightning_logs", "real")
    patterns = [
        "config.yaml",
        "machines.txt",
        "metrics.csv",
        "diagnosis.csv",
        "events.out.tfevents.*",
        "masks.safetensors",
    ]
    patterns += ["training.json", "checkpoints/*.ckpt"]
    for pattern in patterns:
        assert len(list(folder.glob(pattern))) == 1, pattern
    # The name of .owner is empty before its dot.
    names = {path.name.partition(".")[0] for path in folder.iterdir()} - {""}
    assert names == {pattern.partition(".")[0].partition("/")[0] for pattern in patterns}


def test_the_masks_of_a_run_have_exactly_the_given_density(fitted: tuple[Path, str]) -> None:
    folder, _ = fitted
    masks = Masks.load(folder / "masks.safetensors")
    assert (masks.kept, masks.total) == (KEPT, 119_400)


def test_the_checkpoint_of_a_run_loads_into_the_plain_network_with_its_zeros(
    fitted: tuple[Path, str],
) -> None:
    folder, _ = fitted
    masks = Masks.load(folder / "masks.safetensors")
    network = load_weights(FC(), folder)
    assert all(not parameter[~mask].any() for parameter, mask in masks.parameters(network))
    assert sum(int(parameter.count_nonzero()) for parameter, _ in masks.parameters(network)) == KEPT


def test_the_configuration_of_a_run_has_the_given_and_the_derived_options(
    fitted: tuple[Path, str],
) -> None:
    content = yaml.safe_load((fitted[0] / "config.yaml").read_text())
    assert content["run"] == "real"
    assert content["seed_everything"] == 0
    assert (content["pruning"]["density"], content["pruning"]["rounds"]) == (0.05, 20)
    assert content["model"]["network"]["init_args"]["input_shape"] == [1, 28, 28]


def test_the_metrics_of_a_run_hold_each_round_and_each_epoch(fitted: tuple[Path, str]) -> None:
    written = rows(fitted[0] / "metrics.csv")
    densities = [float(row["pruning/density"]) for row in written if row.get("pruning/density")]
    # Twenty equal steps on a logarithmic scale from 1 to 0.05, rounded to whole weights.
    assert densities == pytest.approx([0.05 ** (round / 20) for round in range(1, 21)], abs=1e-5)
    for metric in (
        "train/loss",
        "train/accuracy",
        "train/accuracy_top5",
        "val/loss",
        "val/accuracy",
        "val/accuracy_top5",
    ):
        assert len([row for row in written if row[metric]]) == 1, metric


def test_fit_ends_with_the_run_s_folder_and_the_next_commands(
    fitted: tuple[Path, str],
) -> None:
    lines = fitted[1].strip().splitlines()[-3:]
    assert lines[0].endswith("lightning_logs/real")
    assert lines[1].endswith("python -m synflow_pl test --ckpt_path lightning_logs/real")
    assert lines[2].endswith("tensorboard --logdir lightning_logs")


@pytest.mark.parametrize("what", ["run", "file"])
def test_a_test_of_a_run_adds_to_that_run(what: str, fitted: tuple[Path, str]) -> None:
    folder, _ = fitted
    before, events = rows(folder / "metrics.csv"), set(folder.glob("events*"))
    config = (folder / "config.yaml").read_bytes()
    path = folder if what == "run" else next(folder.glob("checkpoints/*.ckpt"))

    cli = run(["test", "--ckpt_path", os.path.relpath(path), *QUIET])

    after = rows(folder / "metrics.csv")
    assert len(after) == len(before) + 1
    assert all(
        earlier.items() <= later.items() for earlier, later in zip(before, after, strict=False)
    )
    assert cli.metrics is not None
    assert float(after[-1]["test/accuracy"]) == pytest.approx(cli.metrics[0]["test/accuracy"])
    assert len(events) < len(set(folder.glob("events*")))
    assert (folder / "config.yaml").read_bytes() == config
    assert [path.name for path in folder.parent.iterdir()] == ["real"]


def test_pruned_weights_are_zero_in_the_network_that_is_tested(fitted: tuple[Path, str]) -> None:
    folder, _ = fitted
    cli = run(
        ["test", "--ckpt_path", "lightning_logs/real", "--trainer.limit_test_batches", "1", *QUIET]
    )
    masks = Masks.load(folder / "masks.safetensors")
    assert (
        sum(int(parameter.count_nonzero()) for parameter, _ in masks.parameters(cli.model.network))
        == KEPT
    )


def test_validate_returns_the_accuracy_that_training_ended_with(fitted: tuple[Path, str]) -> None:
    folder, _ = fitted
    trained = next(
        float(row["val/accuracy"]) for row in rows(folder / "metrics.csv") if row["val/accuracy"]
    )
    # The run's own configuration sets the number of batches.
    run(["validate", "--ckpt_path", str(folder), *QUIET])
    last = [
        float(row["val/accuracy"]) for row in rows(folder / "metrics.csv") if row["val/accuracy"]
    ][-1]
    assert last == pytest.approx(trained)


def test_predictions_are_one_line_per_test_image_and_as_accurate_as_the_test(
    fitted: tuple[Path, str],
) -> None:
    folder, _ = fitted
    run(["predict", "--ckpt_path", str(folder), *QUIET])
    written = rows(folder / "predictions.csv")
    assert [int(row["image"]) for row in written] == list(range(1000))
    # The likeliest of ten classes has a probability of at least a tenth.
    assert all(0.1 <= float(row["probability"]) <= 1 for row in written)
    (folder / "predictions.csv").unlink()

    labels = Digits().images(train=False)[1].tolist()
    right = sum(int(row["class"]) == label for row, label in zip(written, labels, strict=True))
    cli = run(["test", "--ckpt_path", str(folder), *QUIET])
    assert cli.metrics is not None
    assert cli.metrics[0]["test/accuracy"] == pytest.approx(right / 1000)


def test_a_user_s_images_are_predicted_by_file_name(fitted: tuple[Path, str]) -> None:
    folder, _ = fitted
    pixels, _labels = Digits().images(train=False)
    own = folder.parent.parent / "own"
    own.mkdir()
    for index in (2, 0, 1):
        Image.fromarray(pixels[index, 0].numpy()).save(own / f"{index}.png")
    predictions = []
    for options in ([], ["--data.predict_dir", "own"]):
        run(["predict", "--ckpt_path", str(folder), *options, *QUIET])
        predictions.append(rows(folder / "predictions.csv"))
        (folder / "predictions.csv").unlink()
    assert [row["image"] for row in predictions[1]] == ["own/0.png", "own/1.png", "own/2.png"]
    for mine, theirs in zip(predictions[1], predictions[0], strict=False):
        assert mine["class"] == theirs["class"]
        assert float(mine["probability"]) == pytest.approx(float(theirs["probability"]), abs=1e-5)


def test_predictions_of_several_devices_are_refused(
    fitted: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(
            [
                "predict",
                "--ckpt_path",
                str(fitted[0]),
                "--trainer.devices",
                "2",
                "--trainer.strategy",
                "ddp_fork",
                *QUIET,
            ]
        )
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("predict runs on one device, not 2; add --trainer.devices 1")
    )


def test_a_folder_that_does_not_exist_is_reported_in_one_sentence(
    fitted: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(["predict", "--ckpt_path", str(fitted[0]), "--data.predict_dir", "nowhere", *QUIET])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == (
        "synflow_pl: error: predict_dir: there is no folder 'nowhere'; give one that holds images"
    )


def test_a_resumed_run_keeps_its_masks_and_is_not_pruned_again(fitted: tuple[Path, str]) -> None:
    folder, _ = fitted
    options = [
        "-c",
        "lightning_logs/real/config.yaml",
        "--pruning.density",
        "0.5",
        "--trainer.max_epochs",
        "2",
    ]
    cli = run(["fit", *options, "--ckpt_path", "lightning_logs/real", "--run", "resumed"])
    try:
        assert cli.trainer.current_epoch == 2
        before, after = (
            Masks.load(folder / "masks.safetensors"),
            load_weights(FC(), folder.parent / "resumed"),
        )
        assert all(not parameter[~mask].any() for parameter, mask in before.parameters(after))
    finally:
        (folder.parent / "resumed").rename(folder.parent.parent / "resumed")


def test_masks_of_one_run_train_another(fitted: tuple[Path, str]) -> None:
    folder, _ = fitted
    options = [
        "--pruning.masks_path",
        "lightning_logs/real/masks.safetensors",
        "--trainer.default_root_dir",
        "elsewhere",
    ]
    cli = run(["fit", *FC_ON_DIGITS, "--seed_everything", "1", *options, *SHORT])
    assert cli.run_folder is not None
    assert cli.run_folder.parts == (
        "elsewhere",
        "lightning_logs",
        "digits_fc-masks_real-density1-seed1",
    )
    before, after = (
        Masks.load(folder / "masks.safetensors"),
        Masks.load(cli.run_folder / "masks.safetensors"),
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_two_processes_train_under_the_masks_of_the_first(folder: Path) -> None:
    # Started as a user does, in a new process: forked ranks would inherit locks of OpenMP threads
    # that do not exist in them.
    options = ["--pruning.density", "0.05", "--pruning.pruner", "Random", "--run", "two", *SHORT]
    processes = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    command = [sys.executable, "-m", "synflow_pl", "fit", *FC_ON_DIGITS, *options, *processes]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    masks = Masks.load(folder / "lightning_logs/two/masks.safetensors")
    network = load_weights(FC(), folder / "lightning_logs/two")
    # If the second process had other masks, the sum of both gradients would change pruned weights.
    assert masks.kept == KEPT
    assert all(not parameter[~mask].any() for parameter, mask in masks.parameters(network))
    assert sum(int(parameter.count_nonzero()) for parameter, _ in masks.parameters(network)) == KEPT
    assert [path.name for path in (folder / "lightning_logs").iterdir()] == ["two"]


def test_a_run_starts_from_the_weights_of_another(
    fitted: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = fitted
    monkeypatch.setattr(Session, "execute", lambda self, name: None)
    Path("start.yaml").write_text("network_weights: lightning_logs/real\n")
    network = run(
        [
            "fit",
            "-c",
            "start.yaml",
            *FC_ON_DIGITS,
            "--pruning.density",
            "0.5",
            "--trainer.default_root_dir",
            "started",
        ]
    ).model.network
    trained = load_weights(FC(), folder).state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in network.state_dict().items())


def test_a_checkpoint_takes_precedence_over_weights_from_a_file(fitted: tuple[Path, str]) -> None:
    cli = run(
        ["test", "--ckpt_path", "lightning_logs/real", "--network_weights", "nowhere.pt", *QUIET]
    )
    trained = load_weights(FC(), fitted[0]).state_dict()
    assert all(
        torch.equal(tensor, trained[name])
        for name, tensor in cli.model.network.state_dict().items()
    )


@pytest.mark.slow
@pytest.mark.parametrize(("pruner", "cuts"), [("Random", 1), ("GradualMagnitude", 7)])
def test_two_processes_prune_at_the_same_later_step(pruner: str, cuts: int, folder: Path) -> None:
    # The first three of twelve steps are dense, and gradual pruning ends after the ninth, at three
    # quarters of the training.
    options = [
        "--pruning.density",
        "0.05",
        "--pruning.pruner",
        pruner,
        "--pruning.at_epoch",
        "1",
        "--pruning.rounds",
        str(cuts),
        "--pruning.scope",
        "local",
    ]
    options += ["--pruning.pruner.end_fraction", "0.75"] if cuts > 1 else []
    processes = [
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        "ddp",
        "--trainer.max_epochs",
        "4",
        "--run",
        "two",
    ]
    command = [
        sys.executable,
        "-m",
        "synflow_pl",
        "fit",
        *FC_ON_DIGITS,
        *SHORT,
        *options,
        *processes,
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(synflow_pl.__file__).parents[1]),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    masks = Masks.load(folder / "lightning_logs/two/masks.safetensors")
    network = load_weights(FC(), folder / "lightning_logs/two")
    assert masks.kept == KEPT
    assert sum(int(parameter.count_nonzero()) for parameter, _ in masks.parameters(network)) == KEPT
    densities = [
        float(row["pruning/density"])
        for row in rows(folder / "lightning_logs/two/metrics.csv")
        if row["pruning/density"]
    ]
    # There are six steps, so two of seven rounds coincide.
    assert len(densities) == min(cuts, 6)
    assert densities == sorted(densities, reverse=True)
