"""Loggers receive every metric, table and figure of a short run."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import image
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from synflow_pl import diagnose, prune
from synflow_pl.cli import subcommands
from synflow_pl.cli.main import run
from synflow_pl.data import Digits
from synflow_pl.diagnosis import DeadNetwork, Diagnosis
from synflow_pl.masks import Masks
from synflow_pl.networks import FC, Conv
from synflow_pl.pruners import Magnitude
from synflow_pl.training import Classifier, PruneAtInit
from synflow_pl.training.visualization import show_diagnosis, wants_pictures


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = [
            "--trainer.max_epochs",
            "2",
            "--trainer.limit_train_batches",
            "3",
            "--pruning.rounds",
            "10",
            "--run",
            "short",
        ]
        options += ["--trainer.log_every_n_steps", "1"]
        cli = run(["fit", "-c", "demo", *options, "--trainer.enable_progress_bar", "false"])
        subcommands.test(cli, model=cli.model, datamodule=cli.datamodule)
    return folder / "lightning_logs" / "short"


@pytest.fixture(scope="module")
def events(finished: Path) -> Any:
    accumulator = EventAccumulator(
        str(finished), size_guidance={"images": 10, "tensors": 100, "histograms": 10}
    )
    accumulator.Reload()
    return accumulator


def decoded(picture: Any) -> torch.Tensor:
    """Return the image as a tensor of shape (3, height, width) in [0, 1]."""
    return torch.from_numpy(
        image.imread(io.BytesIO(picture.encoded_image_string), format="png")[..., :3]
    ).permute(2, 0, 1)


@pytest.mark.parametrize("stage", ["train", "val", "test"])
@pytest.mark.parametrize("metric", ["loss", "accuracy", "accuracy_top5"])
def test_loss_and_accuracies_are_logged(events: Any, stage: str, metric: str) -> None:
    assert len(events.Scalars(f"{stage}/{metric}")) == (1 if stage == "test" else 2)


def test_the_learning_rate_is_logged(events: Any) -> None:
    rates = [
        event.value
        for tag in events.Tags()["scalars"]
        if tag.startswith("lr-SGD")
        for event in events.Scalars(tag)
    ]
    assert rates[0] == pytest.approx(0.05)


def test_the_density_after_every_round_is_logged(events: Any) -> None:
    rounds = events.Scalars("pruning/density")
    assert [event.step for event in rounds] == list(range(1, 11))
    assert rounds[-1].value == pytest.approx(0.05, abs=1e-4)


def test_gradient_norm_and_images_per_second_are_logged_at_every_step(
    events: Any,
) -> None:
    for tag in ("train/gradient_norm", "train/images_per_second"):
        assert [event.step for event in events.Scalars(tag)] == list(range(6))
        assert all(event.value > 0 for event in events.Scalars(tag))


def test_the_effective_density_is_logged(events: Any) -> None:
    (density,) = events.Scalars("pruning/effective_density")
    assert 0.045 < density.value <= 0.0501


@pytest.mark.parametrize("name", ["density_per_layer", "layers_over_rounds", "unit_scores"])
def test_figures_of_the_pruning_are_logged_and_not_blank(name: str, events: Any) -> None:
    (picture,) = events.Images(f"pruning/{name}")
    assert picture.width > 500
    assert picture.height > 100
    pixels = decoded(picture)
    # Some pixels are coloured; frame, grid and text are grey.
    assert float(((pixels.max(0).values - pixels.min(0).values) > 0.2).float().mean()) > 0.001


def test_the_masks_of_the_first_convolution_are_an_image_that_is_white_where_weights_are_kept(
    events: Any, finished: Path
) -> None:
    (picture,) = events.Images("pruning/masks_of_layers.0")
    grid = decoded(picture)[0]
    # 32 units in rows of eight, with 3x3 weights of 16 pixels each and 3 grey pixels of padding.
    assert grid.shape == (4 * (48 + 3) + 3, 8 * (48 + 3) + 3)
    seen = [
        grid[3 + 51 * row :, 3 + 51 * column :][8:48:16, 8:48:16]
        for row in range(4)
        for column in range(8)
    ]
    mask = Masks.load(finished / "masks.safetensors")["layers.0.weight"]
    assert torch.equal(torch.stack(seen).round().bool(), mask.squeeze(1))
    assert not mask.all()


def test_the_scores_of_kept_weights_are_logged_as_a_histogram_per_layer(
    events: Any, finished: Path
) -> None:
    masks = Masks.load(finished / "masks.safetensors")
    for name in masks.weights:
        (histogram,) = events.Histograms(f"log10_scores/{name.removesuffix('.weight')}")
        assert histogram.histogram_value.num == masks[name].count_nonzero()
        assert histogram.histogram_value.min < histogram.histogram_value.max < 1


def test_the_diagnosis_table_is_logged_as_text(events: Any) -> None:
    (text,) = events.Tensors("pruning/table/text_summary")
    assert b"layers.5.weight" in text.tensor_proto.string_val[0]


def test_the_hyperparameters_are_logged_with_their_metrics(events: Any) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = HParamsPluginData.FromString(data).experiment
    assert {metric.name.tag for metric in experiment.metric_infos} >= {
        "val/accuracy",
        "test/accuracy",
        "pruning/density",
    }
    data = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = HParamsPluginData.FromString(data).session_start_info.hparams
    assert settings["density"].number_value == pytest.approx(0.05)
    assert settings["pruner"].string_value == "synflow"
    assert settings["seed"].number_value == 0


def test_the_csv_file_has_the_same_scalars(finished: Path) -> None:
    with open(finished / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    filled = {key for row in rows for key, value in row.items() if value}
    assert {
        "train/loss",
        "val/accuracy",
        "val/accuracy_top5",
        "test/accuracy",
        "pruning/density",
    } <= filled
    assert any(key.startswith("lr-SGD") for key in filled)
    assert {"pruning/effective_density", "train/gradient_norm", "train/images_per_second"} <= filled


def test_the_diagnosis_table_is_written_to_the_folder_of_the_csv_file(finished: Path) -> None:
    with open(finished / "diagnosis.csv", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert names[:3] == ["layers.0.weight", "layers.2.weight", "layers.5.weight"]


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    network = Conv()
    return diagnose(network, prune(network, Magnitude(), density=0.5), input_shape=(1, 28, 28))


class RecordingLogger(DummyLogger):
    """Logger that records numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        self.numbers |= metrics


def test_a_logger_with_log_table_gets_the_diagnosis_table(diagnosis: Diagnosis) -> None:
    class TableLogger(RecordingLogger):
        """Logger with a method ``log_table``, like that of W&B."""

        def log_table(self, key: str, columns: list[str], data: list[list[Any]]) -> None:
            self.table = (key, columns, data)

    logger = TableLogger()
    show_diagnosis([logger], diagnosis)
    key, columns, rows = logger.table
    assert (key, columns[0], len(rows)) == ("pruning/table", "parameter", 3)
    assert rows[0][:2] == ["layers.0.weight", 288]
    assert logger.numbers == {"pruning/effective_density": diagnosis.effective_density}


def test_mlflow_gets_the_diagnosis_table_as_a_file_of_the_run(diagnosis: Diagnosis) -> None:
    class RecordingMLFlowLogger(MLFlowLogger):
        """MLFlowLogger that records files and does not need MLflow."""

        run_id = "a run"

        def __init__(self) -> None:
            self.numbers: dict[str, float] = {}
            self.files: list[tuple[str, str, str]] = []

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            self.numbers |= metrics

        @property
        def experiment(self) -> Any:
            return self

        def log_text(self, run_id: str, text: str, path: str) -> None:
            self.files.append((run_id, text, path))

    logger = RecordingMLFlowLogger()
    show_diagnosis([logger], diagnosis)
    assert logger.files == [("a run", diagnosis.table(), "pruning/table.txt")]
    assert logger.numbers["pruning/effective_density"] == diagnosis.effective_density


def test_a_logger_without_tables_or_figures_gets_numbers_only(
    diagnosis: Diagnosis, tmp_path: Path
) -> None:
    logger = RecordingLogger()
    show_diagnosis([logger], diagnosis)
    assert logger.numbers["pruning/effective_density"] == diagnosis.effective_density
    assert not wants_pictures([logger, CSVLogger(tmp_path)])
    assert not wants_pictures([])


def test_figures_of_a_dead_network_are_logged_before_the_error(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(tmp_path, name="", version=""),
        callbacks=[PruneAtInit(Magnitude(), density=0.01)],
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    with pytest.raises(DeadNetwork):
        trainer.fit(Classifier(FC()), datamodule=Digits())
    trainer.logger.finalize("failed")
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    # FC has no convolution, so no masks are shown.
    assert sorted(accumulator.Tags()["images"]) == [
        f"pruning/{x}" for x in ("density_per_layer", "layers_over_rounds", "unit_scores")
    ]
    # The first of six layers has no kept weight.
    assert len(accumulator.Tags()["histograms"]) == 5
