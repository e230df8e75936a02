"""What TensorBoard shows of a short run: every tag that is promised, read from the event file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from synflow_pl.cli.main import run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "3", "--pruning.rounds", "10", "--run", "short"]
        cli = run(["fit", "-c", "demo", *options, "--trainer.enable_progress_bar", "false"])
        cli.test(model=cli.model, datamodule=cli.datamodule)
    return folder / "lightning_logs" / "short"


@pytest.fixture(scope="module")
def events(finished: Path) -> Any:
    accumulator = EventAccumulator(str(finished), size_guidance={"images": 10, "tensors": 100})
    accumulator.Reload()
    return accumulator


@pytest.mark.parametrize("stage", ["train", "val", "test"])
@pytest.mark.parametrize("metric", ["loss", "accuracy", "accuracy_top5"])
def test_loss_and_accuracies_are_there(events: Any, stage: str, metric: str) -> None:
    assert len(events.Scalars(f"{stage}/{metric}")) == (1 if stage == "test" else 2)


def test_the_learning_rate_is_there(events: Any) -> None:
    rates = [event.value for tag in events.Tags()["scalars"] if tag.startswith("lr-SGD") for event in events.Scalars(tag)]
    assert rates[0] == pytest.approx(0.05)


def test_the_density_after_every_round_is_there(events: Any) -> None:
    rounds = events.Scalars("pruning/density")
    assert [event.step for event in rounds] == list(range(1, 11))
    assert rounds[-1].value == pytest.approx(0.05, abs=1e-4)


def test_the_density_of_each_layer_is_a_picture_and_the_table_a_text(events: Any) -> None:
    (picture,) = events.Images("pruning/density_per_layer")
    assert picture.width > 500
    assert picture.height > 100
    (text,) = events.Tensors("pruning/table/text_summary")
    assert b"layers.5.weight" in text.tensor_proto.string_val[0]


def test_the_hyperparameters_are_there_with_the_metrics_that_they_led_to(events: Any) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = HParamsPluginData.FromString(data).experiment
    assert {metric.name.tag for metric in experiment.metric_infos} >= {"val/accuracy", "test/accuracy", "pruning/density"}
    data = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = HParamsPluginData.FromString(data).session_start_info.hparams
    assert settings["density"].number_value == pytest.approx(0.05)
    assert settings["pruner"].string_value == "synflow"
    assert settings["seed"].number_value == 0


def test_the_csv_has_the_same_scalars(finished: Path) -> None:
    with open(finished / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    filled = {key for row in rows for key, value in row.items() if value}
    assert {"train/loss", "val/accuracy", "val/accuracy_top5", "test/accuracy", "pruning/density"} <= filled
    assert any(key.startswith("lr-SGD") for key in filled)
