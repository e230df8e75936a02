"""What TensorBoard shows of a short run: every tag that is promised, read from the event file."""

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
        cli.test(model=cli.model, datamodule=cli.datamodule)
    return folder / "lightning_logs" / "short"


@pytest.fixture(scope="module")
def events(finished: Path) -> Any:
    accumulator = EventAccumulator(
        str(finished), size_guidance={"images": 10, "tensors": 100, "histograms": 10}
    )
    accumulator.Reload()
    return accumulator


def decoded(picture: Any) -> torch.Tensor:
    """(3, height, width) in [0, 1]."""
    return torch.from_numpy(
        image.imread(io.BytesIO(picture.encoded_image_string), format="png")[..., :3]
    ).permute(2, 0, 1)


@pytest.mark.parametrize("stage", ["train", "val", "test"])
@pytest.mark.parametrize("metric", ["loss", "accuracy", "accuracy_top5"])
def test_loss_and_accuracies_are_there(events: Any, stage: str, metric: str) -> None:
    assert len(events.Scalars(f"{stage}/{metric}")) == (1 if stage == "test" else 2)


def test_the_learning_rate_is_there(events: Any) -> None:
    rates = [
        event.value
        for tag in events.Tags()["scalars"]
        if tag.startswith("lr-SGD")
        for event in events.Scalars(tag)
    ]
    assert rates[0] == pytest.approx(0.05)


def test_the_density_after_every_round_is_there(events: Any) -> None:
    rounds = events.Scalars("pruning/density")
    assert [event.step for event in rounds] == list(range(1, 11))
    assert rounds[-1].value == pytest.approx(0.05, abs=1e-4)


def test_gradient_norm_and_images_a_second_are_there_for_every_step_that_is_logged(
    events: Any,
) -> None:
    for tag in ("train/gradient_norm", "train/images_per_second"):
        assert [event.step for event in events.Scalars(tag)] == list(range(6))
        assert all(event.value > 0 for event in events.Scalars(tag))


def test_the_effective_density_is_there(events: Any) -> None:
    (told,) = events.Scalars("pruning/effective_density")
    assert 0.045 < told.value <= 0.0501


@pytest.mark.parametrize("name", ["density_per_layer", "layers_over_rounds", "unit_scores"])
def test_what_pruning_did_is_there_in_pictures_with_something_in_them(
    name: str, events: Any
) -> None:
    (picture,) = events.Images(f"pruning/{name}")
    assert picture.width > 500
    assert picture.height > 100
    pixels = decoded(picture)
    # Not white, nor the grey of frame, grid and letters.
    assert float(((pixels.max(0).values - pixels.min(0).values) > 0.2).float().mean()) > 0.001


def test_the_masks_of_the_first_convolution_are_a_picture_white_where_weights_live(
    events: Any, finished: Path
) -> None:
    (picture,) = events.Images("pruning/masks_of_layers.0")
    grid = decoded(picture)[0]
    # 32 units, eight in a row, 3x3 weights of 16 pixels each, with 3 pixels of grey around every
    # unit.
    assert grid.shape == (4 * (48 + 3) + 3, 8 * (48 + 3) + 3)
    seen = [
        grid[3 + 51 * row :, 3 + 51 * column :][8:48:16, 8:48:16]
        for row in range(4)
        for column in range(8)
    ]
    mask = Masks.load(finished / "masks.safetensors")["layers.0.weight"]
    assert torch.equal(torch.stack(seen).round().bool(), mask.squeeze(1))
    assert not mask.all()


def test_the_scores_of_the_weights_kept_are_histograms_layer_by_layer(
    events: Any, finished: Path
) -> None:
    masks = Masks.load(finished / "masks.safetensors")
    for name in masks.weights:
        (histogram,) = events.Histograms(f"log10_scores/{name.removesuffix('.weight')}")
        assert histogram.histogram_value.num == masks[name].count_nonzero()
        assert histogram.histogram_value.min < histogram.histogram_value.max < 1


def test_the_table_is_a_text(events: Any) -> None:
    (text,) = events.Tensors("pruning/table/text_summary")
    assert b"layers.5.weight" in text.tensor_proto.string_val[0]


def test_the_hyperparameters_are_there_with_the_metrics_that_they_led_to(events: Any) -> None:
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


def test_the_csv_has_the_same_scalars(finished: Path) -> None:
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


def test_the_table_lies_beside_the_csv(finished: Path) -> None:
    with open(finished / "diagnosis.csv", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert names[:3] == ["layers.0.weight", "layers.2.weight", "layers.5.weight"]


@pytest.fixture(scope="module")
def told() -> Diagnosis:
    network = Conv()
    return diagnose(network, prune(network, Magnitude(), density=0.5), input_shape=(1, 28, 28))


class Remembering(DummyLogger):
    """A logger of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        self.numbers |= metrics


def test_a_logger_that_takes_tables_is_given_one(told: Diagnosis) -> None:
    class Tabulating(Remembering):
        """As W&B's."""

        def log_table(self, key: str, columns: list[str], data: list[list[Any]]) -> None:
            self.table = (key, columns, data)

    logger = Tabulating()
    show_diagnosis([logger], told)
    key, columns, rows = logger.table
    assert (key, columns[0], len(rows)) == ("pruning/table", "parameter", 3)
    assert rows[0][:2] == ["layers.0.weight", 288]
    assert logger.numbers == {"pruning/effective_density": told.effective_density}


def test_mlflow_is_given_the_table_as_a_file_of_the_run(told: Diagnosis) -> None:
    class Stored(MLFlowLogger):
        """MLflow's logger without MLflow."""

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

    logger = Stored()
    show_diagnosis([logger], told)
    assert logger.files == [("a run", told.table(), "pruning/table.txt")]
    assert logger.numbers["pruning/effective_density"] == told.effective_density


def test_a_logger_of_numbers_alone_is_given_numbers_and_none_draws_nothing(
    told: Diagnosis, tmp_path: Path
) -> None:
    logger = Remembering()
    show_diagnosis([logger], told)
    assert logger.numbers["pruning/effective_density"] == told.effective_density
    assert not wants_pictures([logger, CSVLogger(tmp_path)])
    assert not wants_pictures([])


def test_a_dead_network_is_drawn_before_it_is_refused(tmp_path: Path) -> None:
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
    # FC has no convolution whose masks could be shown.
    assert sorted(accumulator.Tags()["images"]) == [
        f"pruning/{x}" for x in ("density_per_layer", "layers_over_rounds", "unit_scores")
    ]
    assert len(accumulator.Tags()["histograms"]) == 5  # of the first of six layers nothing is left
