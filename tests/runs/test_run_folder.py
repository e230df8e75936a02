import csv
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from synflow_pl.runs import RunCSV, RunTensorBoard, create_run_folder, find_run_folder
from synflow_pl.training import find_checkpoint

# -- create_run_folder


def test_a_free_name_becomes_the_name_of_the_folder(tmp_path: Path) -> None:
    folder = create_run_folder(tmp_path / "lightning_logs", "first")
    assert folder == tmp_path / "lightning_logs" / "first"
    assert folder.is_dir()


def test_a_run_name_that_exists_gets_the_suffix_2_and_then_3(tmp_path: Path) -> None:
    assert [create_run_folder(tmp_path, "run").name for _ in range(4)] == [
        "run",
        "run-2",
        "run-3",
        "run-4",
    ]


def test_the_first_free_suffix_is_used(tmp_path: Path) -> None:
    for name in ("run", "run-3"):
        (tmp_path / name).mkdir()
    assert [create_run_folder(tmp_path, "run").name for _ in range(2)] == ["run-2", "run-4"]


def test_the_name_of_a_file_counts_as_taken(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    assert create_run_folder(tmp_path, "run").name == "run-2"


def test_run_names_with_a_common_prefix_do_not_collide(tmp_path: Path) -> None:
    assert [create_run_folder(tmp_path, name).name for name in ("run-2", "run", "ru", "run")] == [
        "run-2",
        "run",
        "ru",
        "run-3",
    ]


def test_two_threads_never_get_the_same_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: create_run_folder(tmp_path / "logs", "run"), range(64)))
    assert {folder.name for folder in folders} == {
        "run",
        *(f"run-{number}" for number in range(2, 65)),
    }


def _claim_often(root: Path) -> list[str]:
    return [create_run_folder(root, "run").name for _ in range(20)]


def test_two_processes_never_get_the_same_folder(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        names = [
            name
            for names in pool.map(_claim_often, [tmp_path / "logs"] * 4, chunksize=1)
            for name in names
        ]
        pool.close()
        pool.join()
    assert len(names) == 80
    assert set(names) == {"run", *(f"run-{number}" for number in range(2, 81))}


@pytest.mark.parametrize(
    "name", ["mnist_fc-synflow-density0.1-seed0", "a", "v1.0", "kept=5", "a+b@c", "größe"]
)
def test_ordinary_run_names_are_used_unchanged(name: str, tmp_path: Path) -> None:
    assert create_run_folder(tmp_path, name).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "../up",
        "/tmp/run",
        "two words",
        "a\\b",
        "a\nb",
        "a\n",
        "what?",
    ],
)
def test_an_invalid_run_name_is_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / "logs"
    with pytest.raises(ValueError, match=r"^run: .* cannot be a run's name") as refused:
        create_run_folder(root, name)
    assert repr(name) in str(refused.value)
    assert not root.exists()


# -- find_run_folder and find_checkpoint


@pytest.fixture
def a_run(tmp_path: Path) -> Path:
    folder = create_run_folder(tmp_path / "lightning_logs", "run")
    (folder / "config.yaml").write_text("")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "epoch=0.ckpt").write_text("")
    return folder


def test_a_run_is_found_from_its_folder_and_from_its_checkpoint(a_run: Path) -> None:
    assert find_run_folder(a_run) == a_run
    assert find_run_folder(a_run / "checkpoints" / "epoch=0.ckpt") == a_run
    assert find_run_folder(a_run / "masks.safetensors") == a_run


def test_a_checkpoint_outside_of_run_folders_belongs_to_no_run(tmp_path: Path) -> None:
    (tmp_path / "some.ckpt").write_text("")
    assert find_run_folder(tmp_path / "some.ckpt") is None


def test_a_folder_without_a_configuration_is_not_a_run(tmp_path: Path) -> None:
    assert find_run_folder(create_run_folder(tmp_path / "lightning_logs", "run")) is None


def test_a_checkpoint_is_found_by_its_path_or_as_the_newest_of_a_run(a_run: Path) -> None:
    first, second = a_run / "checkpoints" / "epoch=0.ckpt", a_run / "checkpoints" / "epoch=10.ckpt"
    second.write_text("")
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    assert find_checkpoint(first) == first
    assert find_checkpoint(a_run) == second
    os.utime(first, (3, 3))
    assert find_checkpoint(a_run) == first


def test_last_ckpt_is_preferred_to_checkpoints_with_a_later_date(a_run: Path) -> None:
    last = a_run / "checkpoints" / "last.ckpt"
    last.write_text("")
    os.utime(last, (1, 1))
    assert find_checkpoint(str(a_run)) == last


def test_a_path_that_does_not_exist_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"no checkpoint at '.*nowhere'; expected a file of weights or a run's folder",
    ):
        find_checkpoint(tmp_path / "nowhere")


def test_a_run_without_a_checkpoint_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the run .*run' has no checkpoint"):
        find_checkpoint(create_run_folder(tmp_path, "run"))


# -- the loggers


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_of_a_resumed_run_are_appended_with_new_columns(tmp_path: Path) -> None:
    first = RunCSV(tmp_path)
    first.log_metrics({"train/loss": 2.5}, step=1)
    first.log_metrics({"train/loss": 1.5}, step=2)
    first.finalize("success")

    second = RunCSV(tmp_path)
    second.log_metrics({"test/accuracy": 0.75}, step=2)
    second.finalize("success")

    columns = {"step", "train/loss", "test/accuracy"}
    assert [
        {key: value for key, value in row.items() if key in columns} for row in rows(tmp_path)
    ] == [
        {"step": "1", "train/loss": "2.5", "test/accuracy": ""},
        {"step": "2", "train/loss": "1.5", "test/accuracy": ""},
        {"step": "2", "train/loss": "", "test/accuracy": "0.75"},
    ]


def test_a_third_logger_keeps_the_rows_of_two_earlier_ones(tmp_path: Path) -> None:
    for number in range(3):
        logger = RunCSV(tmp_path)
        logger.log_metrics({f"metric_{number}": float(number)}, step=number)
        logger.save()
    assert [row[f"metric_{number}"] for number, row in enumerate(rows(tmp_path))] == [
        "0.0",
        "1.0",
        "2.0",
    ]


def test_saving_twice_writes_a_row_once(tmp_path: Path) -> None:
    logger = RunCSV(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.save()
    logger.save()
    assert len(rows(tmp_path)) == 1


@pytest.mark.parametrize("logger", [RunCSV, RunTensorBoard])
def test_both_loggers_write_directly_into_the_run_folder(
    logger: type[RunCSV | RunTensorBoard], tmp_path: Path
) -> None:
    folder = create_run_folder(tmp_path, "run")
    writer = logger(folder)
    assert writer.log_dir == str(folder)
    writer.log_metrics({"loss": 1.0}, step=0)
    writer.save()
    writer.finalize("success")
    assert [path.name.partition(".")[0] for path in folder.iterdir()] == [
        "metrics" if logger is RunCSV else "events"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_logger_appends_after_the_last_complete_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,test/accuracy\n0,0,0.5\n0,0,0.7")
    logger = RunCSV(tmp_path)
    logger.log_metrics({"epoch": 0, "test/accuracy": 0.25}, step=0)
    logger.save()
    assert (tmp_path / "metrics.csv").read_text().split() == [
        "epoch,step,test/accuracy",
        "0,0,0.5",
        "0,0,0.25",
    ]
