"""Tests of resuming: ``--ckpt_path last``, requeued SLURM jobs, checkpoints and signals."""

from __future__ import annotations

import csv
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import QUIET
from crash import check, crash, main, undisturbed
from torch import nn

from synflow_pl import Classifier
from synflow_pl.cli import resume
from synflow_pl.cli.main import run
from synflow_pl.cli.multishot import multishot
from synflow_pl.cli.resume import OWNER
from synflow_pl.cli.run_selection import RunSelection
from synflow_pl.cli.session import Session
from synflow_pl.training import PruneAtInit
from synflow_pl.training.checkpoints import read

SHORT = [
    "--model.network.width",
    "2",
    "--trainer.max_epochs",
    "2",
    "--trainer.accelerator",
    "cpu",
    "--pruning.rounds",
    "2",
    *QUIET,
]
SHORT += [f"--trainer.limit_{part}_batches={count}" for part, count in (("train", 4), ("val", 1))]
FIT = ["fit", "-c", "demo", *SHORT]
NAME = "demo-synflow-density0.05-seed0"
RUN = Path("lightning_logs") / NAME
LAST = ["--ckpt_path", "last"]


def runs() -> list[str]:
    return sorted(path.name for path in Path("lightning_logs").iterdir())


def stop(monkeypatch: pytest.MonkeyPatch, at: str, *args: str) -> None:
    """Start a run that ends as if it were killed, in pruning or after the first epoch."""

    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        where = (
            (PruneAtInit, "_diagnose")
            if at == "pruning"
            else (Classifier, "on_validation_epoch_start")
        )
        epochs: list[int] = []
        patch.setattr(
            *where,
            killed
            if at == "pruning"
            else lambda module: epochs.append(1) or (len(epochs) == 3 and killed()),
        )
        with pytest.raises(RuntimeError, match="killed"):
            run([*FIT, *args])


@pytest.fixture(scope="module")
def undisturbed_network(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        return dict(run(FIT).model.network.state_dict())


def same(network: nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


# -- --ckpt_path last


def test_last_resumes_the_run_that_was_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch, undisturbed_network: dict[str, torch.Tensor]
) -> None:
    stop(monkeypatch, "epoch")
    config = (RUN / "config.yaml").read_bytes()
    cli = run([*FIT, *LAST])
    assert same(cli.model.network, undisturbed_network)
    assert runs() == [NAME]
    assert (RUN / "config.yaml").read_bytes() == config
    with open(RUN / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows if row["val/loss"]] == ["0", "1"]
    assert len([row for row in rows if row["pruning/density"]]) == 2


def test_a_run_that_was_stopped_in_pruning_starts_again_in_the_same_folder(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed_network: dict[str, torch.Tensor],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop(monkeypatch, "pruning")
    (RUN / ".masks.safetensors.x.unfinished").touch()
    cli = run([*FIT, *LAST])
    assert (
        f"{RUN} was stopped before its first checkpoint; it starts again there, with pruning."
        in capsys.readouterr().out
    )
    assert same(cli.model.network, undisturbed_network)
    assert runs() == [NAME]
    assert sorted(path.name.partition(".tfevents")[0] for path in RUN.iterdir()) == [
        *(
            OWNER,
            "checkpoints",
            "config.yaml",
            "diagnosis.csv",
            "diagnosis.json",
            "events.out",
            "machines.txt",
            "masks.safetensors",
        ),
        *("metrics.csv", "training.json"),
    ]
    with open(RUN / "metrics.csv", newline="") as file:
        assert len([row for row in csv.DictReader(file) if row["pruning/density"]]) == 2


def test_last_does_not_resume_a_run_with_other_settings(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop(monkeypatch, "epoch")
    run([*FIT, "--model.optimizer.lr", "0.01", *LAST])
    assert (
        f"No run with these settings to resume, so a new one is begun; {RUN} has "
        "model.optimizer.init_args.lr=0.05, not 0.01." in capsys.readouterr().out
    )
    assert runs() == [NAME, f"{NAME}-2"]
    assert read(RUN / "checkpoints/last.ckpt")["global_step"] == 4


def test_last_resumes_the_run_with_the_newest_checkpoint_or_the_one_that_is_named(
    built: Callable[..., Session],
) -> None:
    for name in (NAME, f"{NAME}-2", "other"):
        built(*FIT, "--run", name)
    for age, name in enumerate((f"{NAME}-2", NAME, "other")):
        checkpoint = Path("lightning_logs", name, "checkpoints/last.ckpt")
        checkpoint.parent.mkdir()
        torch.save({}, checkpoint)
        os.utime(checkpoint, (1000 - age, 1000 - age))
    assert resumed_name(built, *FIT, *LAST) == f"{NAME}-2"
    assert resumed_name(built, *FIT, "--run", "other", *LAST) == "other"


def resumed_name(built: Callable[..., Session], *args: str) -> str:
    """Return the name of the run that a command resumes, without checking its empty checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunSelection, "check_checkpoint", lambda *_: None)
        run_folder = built(*args).run_folder
    assert run_folder is not None
    return run_folder.name


OWNS = (
    "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); "
    "print(flush=True); sys.stdin.read()"
)


def test_last_does_not_resume_a_run_that_another_process_has_locked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop(monkeypatch, "epoch")
    while resume._held:
        resume._held.pop().close()  # releases the lock, as the end of the process would
    command = [sys.executable, "-c", OWNS, str(RUN / OWNER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        run([*FIT, *LAST])
        assert f"{RUN} is being worked in by another process" in capsys.readouterr().out
        assert runs() == [NAME, f"{NAME}-2"]
        with pytest.raises(SystemExit):
            run([*FIT, "--run", NAME, "--ckpt_path", str(RUN)])
        assert f"run: another process works in {RUN}; wait for it" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["best", "hpc", "registry"])
def test_lightning_s_other_keywords_for_checkpoints_are_not_accepted(
    word: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run([*FIT, "--ckpt_path", word])
    assert f"no checkpoint at '{word}'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(["test", "-c", "demo", "--ckpt_path", "last"])
    assert "no checkpoint at 'last'" in capsys.readouterr().err


# -- SLURM


def job(monkeypatch: pytest.MonkeyPatch, number: int, restarts: int) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", str(number))
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))


def test_a_requeued_job_resumes_its_own_run_and_no_other(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed_network: dict[str, torch.Tensor],
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The handler of SIGUSR1 is not changed.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for number in (7, 8):
        job(monkeypatch, number, 0)
        stop(monkeypatch, "epoch")
    assert [(Path("lightning_logs") / name / OWNER).read_text() for name in runs()] == ["7", "8"]
    for number, name in ((8, f"{NAME}-2"), (7, NAME)):
        job(monkeypatch, number, 1)
        cli = run(FIT)
        assert cli.run_folder == Path("lightning_logs") / name
        assert same(cli.model.network, undisturbed_network)
    job(monkeypatch, 9, 1)
    assert run(FIT).run_folder == Path("lightning_logs") / f"{NAME}-3"
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    capsys.readouterr()
    assert run([*FIT, *LAST]).run_folder == Path("lightning_logs") / f"{NAME}-4"
    assert (
        f"{RUN} belongs to SLURM job 7; to resume it all the same: --run {NAME} --ckpt_path {RUN}"
        in capsys.readouterr().out
    )


def test_a_job_ignores_lightning_s_checkpoint_of_another_job(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("hpc_ckpt_1.ckpt").write_text("a stranger's")
    for name, value in {
        "SLURM_NTASKS": 1,
        "SLURM_JOB_ID": 7,
        "SLURM_PROCID": 0,
        "SLURM_LOCALID": 0,
        "SLURM_NODEID": 0,
    }.items():
        monkeypatch.setenv(name, str(value))
    before = signal.getsignal(signal.SIGUSR1)
    try:
        cli = run(FIT)
        assert cli.trainer.global_step == 8
        assert not cli.trainer._accelerator_connector.cluster_environment.auto_requeue
        run(["validate", "-c", "demo", *SHORT])
    finally:
        signal.signal(signal.SIGUSR1, before)


def _open(number: int) -> str:
    folder = run(FIT).run_folder
    assert folder is not None
    return folder.name


def test_eight_jobs_that_start_at_once_get_eight_runs(built: Callable[..., Session]) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        names = pool.map(_open, range(8), chunksize=1)
        # Without close() the workers would be ended by SIGTERM, for which a run has a handler.
        pool.close()
        pool.join()
    assert sorted(names) == [NAME, *(f"{NAME}-{number}" for number in range(2, 9))]
    assert all((Path("lightning_logs") / name / "config.yaml").is_file() for name in names)


# -- differences between a checkpoint and the command line


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the folder of a run that has ended, in its own working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("ended"))
        patch.delenv("SYNFLOW_PL_RUN", raising=False)
        run([*FIT, "--run", "ended", "--trainer.max_epochs", "1"])
        yield Path("lightning_logs/ended")


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return the error message of a command that fails before a run is opened."""
    before = runs()
    with pytest.raises(SystemExit) as raised:
        run(list(args))
    assert raised.value.code == 2
    assert runs() == before
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_note_names_each_option_that_a_checkpoint_overrides(
    ended: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = [
        "--pruning.density",
        "0.3",
        "--model.optimizer.lr",
        "0.01",
        "--model.scheduler.milestones",
        "[1]",
    ]
    with caplog.at_level("INFO"):
        run([*FIT, *options, "--ckpt_path", str(ended), "--run", "other"])
    notes = [message for message in caplog.messages if "has no effect" in message]
    assert notes == [
        "model.optimizer.init_args.lr: 0.01 has no effect; the checkpoint's 0.05 stays.",
        "model.scheduler.init_args.milestones: [1] has no effect; the checkpoint's [4, 5] stays.",
        "pruning.density: 0.3 has no effect; the checkpoint's 0.05 stays.",
    ]
    caplog.clear()
    with caplog.at_level("INFO"):
        run(
            [
                "test",
                "--ckpt_path",
                str(ended),
                "--pruning.density",
                "0.3",
                "--trainer.limit_test_batches",
                "1",
            ]
        )
    assert "pruning.density: 0.3 has no effect; the checkpoint's 0.05 stays." in caplog.messages


def test_another_value_of_compact_is_an_error_and_not_a_note(
    ended: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"), pytest.raises(SystemExit):
        run([*FIT, "--pruning.compact", "true", "--ckpt_path", str(ended), "--run", "small"])
    assert "the checkpoint was trained with compact false" in capsys.readouterr().err
    assert not [message for message in caplog.messages if "has no effect" in message]


def test_resuming_with_another_optimiser_is_an_error(
    ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adam = ["--model.optimizer", "Adam", "--model.optimizer.lr", "0.01"]
    stderr = refused(capsys, *FIT, *adam, "--ckpt_path", str(ended))
    assert "not trained with Adam (it has no amsgrad, betas" in stderr
    assert "in place of --ckpt_path" in stderr
    # The states of Adam and AdamW have the same names, so the settings of the runs are compared.
    run([*FIT, *adam, "--run", "adam", "--trainer.max_epochs", "1"])
    adamw = ["--model.optimizer", "AdamW", "--model.optimizer.lr", "0.01"]
    stderr = refused(capsys, *FIT, *adamw, "--ckpt_path", "lightning_logs/adam")
    assert (
        "model.optimizer.class_path: the checkpoint was trained with torch.optim.Adam, not "
        "torch.optim.AdamW" in stderr
    )


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_checkpoint_of_another_width_is_an_error(
    command: str, ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stderr = refused(
        capsys,
        command,
        "-c",
        "demo",
        *SHORT,
        "--model.network.width",
        "4",
        "--ckpt_path",
        str(ended),
    )
    assert (
        "does not fit this network: network.layers.0.weight (and 4 more) is (2, 1, 3, 3) in the "
        "file and (4, 1, 3, 3)" in stderr
    )


def test_hyperparameters_in_a_checkpoint_do_not_change_the_options(ended: Path) -> None:
    content = read(ended / "checkpoints/last.ckpt")
    torch.save({**content, "hyper_parameters": {"num_classes": 7}}, "told.ckpt")
    assert (
        run(["test", "-c", "demo", *SHORT, "--ckpt_path", "told.ckpt"]).options.model.num_classes
        == 10
    )


def test_resuming_from_weights_alone_is_an_error_that_names_the_alternative(
    ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = read(ended / "checkpoints/last.ckpt")
    torch.save(
        {key: content[key] for key in ("state_dict", "epoch", "global_step", "loops")},
        "weights.ckpt",
    )
    stderr = refused(capsys, *FIT, "--ckpt_path", "weights.ckpt")
    assert "'weights.ckpt' holds weights only" in stderr
    assert "--network_weights weights.ckpt in place of --ckpt_path" in stderr


def test_a_dense_checkpoint_is_pruned_in_mid_training_only_at_a_later_at_epoch(
    ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = [
        *FIT[:3],
        "-c",
        "pruners/dense",
        "--trainer.max_epochs",
        "1",
        "--model.network.width",
        "2",
        *SHORT[8:],
    ]
    run([*dense, "--run", "dense"])
    with pytest.raises(SystemExit):
        run([*FIT, "--ckpt_path", "lightning_logs/dense", "--run", "pruned"])
    assert (
        "was trained without masks and would be pruned in mid-training; resume dense"
        in capsys.readouterr().err
    )
    cli = run(
        [*FIT, "--ckpt_path", "lightning_logs/dense", "--run", "ahead", "--pruning.at_epoch", "1"]
    )
    masks = next(callback for callback in cli.callbacks if isinstance(callback, PruneAtInit)).masks
    assert (cli.trainer.global_step, masks.kept) == (8, -(-masks.total // 20))


# -- a full disk, a signal


def test_a_full_disk_is_reported_in_one_sentence_and_keeps_the_last_checkpoint(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    undisturbed_network: dict[str, torch.Tensor],
) -> None:
    # A limit on the size of files makes the second checkpoint fail as on a full disk, even for
    # root.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(module: Classifier) -> None:
        if module.current_epoch == 1:
            resource.setrlimit(
                resource.RLIMIT_FSIZE,
                ((RUN / "checkpoints/last.ckpt").stat().st_size - 100, limits[1]),
            )

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_validation_epoch_end", fill)
        try:
            with pytest.raises(SystemExit) as raised:
                run(FIT)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.code == 1
    stderr = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        f"'{RUN}/checkpoints/last.ckpt' could not be written (File too large); what was there "
        "before is whole" in stderr
    )
    assert [path.name for path in (RUN / "checkpoints").iterdir()] == ["last.ckpt"]
    assert same(run([*FIT, *LAST]).model.network, undisturbed_network)
    assert runs() == [NAME]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_after_a_signal_the_checkpoint_is_written_and_named(
    number: signal.Signals,
    status: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    undisturbed_network: dict[str, torch.Tensor],
) -> None:
    sent: list[int] = []

    def send(module: Classifier, *_: object) -> None:
        sent.append(1)
        if len(sent) == 2:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_train_batch_start", send)
        with pytest.raises(SystemExit) as raised:
            run(FIT)
    assert raised.value.code == status
    stderr = capsys.readouterr().err
    assert (
        f"stopped by {number.name}; {RUN}/checkpoints/last.ckpt is whole; the same command with "
        "--ckpt_path last resumes there" in stderr
    )
    assert read(RUN / "checkpoints/last.ckpt")["global_step"] == 2
    assert same(run([*FIT, *LAST]).model.network, undisturbed_network)


def test_the_message_after_ctrl_c_in_pruning_says_that_the_run_starts_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PruneAtInit, "_diagnose", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as raised:
            run(FIT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert raised.value.code == 130
    assert (
        "stopped by SIGINT; the same command with --ckpt_path last starts again there"
        in capsys.readouterr().err
    )


def test_a_second_ctrl_c_ends_the_training_at_once(folder: Path) -> None:
    script = (
        "import os, signal, sys, time\nfrom synflow_pl import Classifier\nfrom synflow_pl.cli.main "
        "import run\n"
    )
    script += (
        "def wait(module, *_):\n    for _ in range(2):\n        os.kill(os.getpid(), "
        "signal.SIGINT)\n    time.sleep(3000)\n"
    )
    script += "Classifier.on_train_batch_start = wait\nrun(sys.argv[1:])\n"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *FIT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGINT
    assert "SIGINT: training stops after this batch" in done.stderr


# -- untrusted files


class Evil:
    """Object that makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "args",
    [
        ["fit", "--ckpt_path", "evil"],
        ["fit", "--ckpt_path", "evil.ckpt"],
        ["test", "--ckpt_path", "evil.ckpt"],
        ["test", "--ckpt_path", "evil"],
        ["validate", "--ckpt_path", "evil.ckpt"],
        ["predict", "--ckpt_path", "evil.ckpt"],
        ["fit", "--network_weights", "evil.ckpt"],
        ["fit", "--network_weights", "evil.safetensors"],
        ["fit", "--pruning.masks_path", "evil.ckpt"],
        ["fit", "--pruning.score_from", "evil.ckpt"],
        ["fit", *LAST],
        ["multishot", "--levels", "1", "--run", "evil"],
        ["fit", "--ckpt_path", "evil.ckpt", "--weights_only", "false"],
    ],
    ids=" ".join,
)
def test_an_untrusted_file_runs_no_code_by_any_option(
    args: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evil = {"state_dict": Evil(folder / "ran"), "global_step": 1, "epoch": 0}
    for path in (
        "evil.ckpt",
        "evil.safetensors",
        "evil/checkpoints/last.ckpt",
        "lightning_logs/evil-level0of1/checkpoints/last.ckpt",
    ):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(evil, path)
    if "last" in args:
        monkeypatch.setattr(Session, "execute", lambda *_: None)
        run(FIT)
        (RUN / "checkpoints").mkdir()
        torch.save(evil, RUN / "checkpoints/last.ckpt")
        monkeypatch.undo()
        monkeypatch.chdir(folder)
    command = multishot if args[0] == "multishot" else lambda others: run([args[0], *others])
    with pytest.raises(SystemExit) as raised:
        command(["-c", "demo", *SHORT, *args[1:]])
    assert raised.value.code not in (0, None)
    assert not (folder / "ran").exists()
    stderr = capsys.readouterr().err
    assert any(
        word in stderr
        for word in ("weights_only", "cannot be read as safetensors", "not a file of masks")
    )


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("run: ../../elsewhere", "cannot be a run's name"),
        (
            "trainer: {default_root_dir: ../elsewhere}",
            "'../elsewhere' in a recipe lies outside of the folder",
        ),
        ("trainer: {default_root_dir: /tmp}", "trainer.default_root_dir: '/tmp' in a recipe"),
        (
            "trainer: {callbacks: [{class_path: pytorch_lightning.callbacks.ModelCheckpoint, "
            "init_args: {dirpath: ../up}}]}",
            "trainer.callbacks: '../up' in a recipe",
        ),
    ],
)
def test_a_recipe_cannot_write_outside_of_the_working_directory(
    recipe: str,
    message: str,
    built: Callable[..., Session],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "in").mkdir()
    os.chdir(folder / "in")
    Path("stranger.yaml").write_text(recipe + "\n")
    with pytest.raises(SystemExit):
        built("fit", "-c", "demo", "-c", "stranger.yaml")
    assert message in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["in"]
    assert [path.name for path in Path().iterdir()] == ["stranger.yaml"]


def test_a_folder_on_the_command_line_may_be_anywhere(
    built: Callable[..., Session], folder: Path
) -> None:
    (folder / "in").mkdir()
    os.chdir(folder / "in")
    assert (
        built(*FIT, "--trainer.default_root_dir", str(folder / "up")).run_folder
        == folder / "up/lightning_logs" / NAME
    )
    assert (
        yaml.safe_load((folder / "up/lightning_logs" / NAME / "config.yaml").read_text())["run"]
        == NAME
    )


# -- killed


@pytest.mark.slow
def test_training_that_is_killed_thirty_times_ends_bitwise_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(30)
    assert "30 kills (6 pruning, 10 writing, 10 epoch, 4 boundary;" in capsys.readouterr().out


def test_training_killed_in_pruning_an_epoch_and_writing_ends_bitwise_the_same(
    tmp_path: Path,
) -> None:
    folder, whole = tmp_path / "killed", tmp_path / "whole"
    for each in (folder, whole):
        each.mkdir()
    undisturbed(whole, 4)
    check(folder, whole, crash(folder, ["pruning", "writing", "epoch"], 4))


@pytest.mark.parametrize(
    ("wrapper", "network"),
    [("network._orig_mod.", "network._orig_mod."), ("module.network.", "network.")],
)
def test_a_checkpoint_is_validated_and_resumed_under_the_names_of_compile_and_ddp(
    wrapper: str, network: str, folder: Path
) -> None:
    options = [
        "-c",
        "demo",
        "--model.network.width",
        "2",
        "--trainer.accelerator",
        "cpu",
        "--pruning.rounds",
        "2",
        *QUIET,
    ]
    options += ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    run(["fit", *options, "--trainer.max_epochs", "1", "--run", "a"])
    content = torch.load("lightning_logs/a/checkpoints/last.ckpt", weights_only=True)
    content["state_dict"] = {
        name.replace("network.", wrapper, 1): tensor
        for name, tensor in content["state_dict"].items()
    }
    content["synflow_pl"]["network"] = network
    torch.save(content, "wrapped.ckpt")
    states = []
    for path in ("lightning_logs/a", "wrapped.ckpt"):
        run(["validate", *options, "--ckpt_path", path])
        cli = run(["fit", *options, "--trainer.max_epochs", "2", "--run", "b", "--ckpt_path", path])
        assert cli.trainer.global_step == 4
        states.append(cli.model.network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
