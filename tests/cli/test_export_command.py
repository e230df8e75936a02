"""Tests of the commands ``compact``, ``export`` and ``predict`` with exported files."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from synflow_pl.cli.export import compact_command, export_command
from synflow_pl.cli.main import run
from synflow_pl.cli.predictions import predict_exported
from synflow_pl.data import Digits
from synflow_pl.export import FORMATS
from synflow_pl.networks import FC
from tests.cli.conftest import QUIET

SHORT = [
    "--trainer.max_epochs",
    "1",
    "--trainer.limit_train_batches",
    "20",
    "--trainer.accelerator",
    "cpu",
    *QUIET,
]


@pytest.fixture
def fitted(folder: Path) -> Path:
    run(
        [
            "fit",
            "-c",
            "demo",
            "--pruning.density",
            "0.02",
            "--pruning.rounds",
            "5",
            "--run",
            "small",
            *SHORT,
        ]
    )
    return folder / "lightning_logs" / "small"


def lines(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_exported_files_predict_the_same_as_the_run(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = fitted.parents[1] / "own"
    own.mkdir()
    for index, image in enumerate(Digits().images(False)[0][:6]):
        Image.fromarray(image[0].numpy()).save(own / f"{index}.png")
    export_command(["--ckpt_path", str(fitted)])
    card = (fitted / "export" / "model.md").read_text()
    assert "- density: 0.02" in card
    assert "- val/accuracy" in card
    files = sorted(path.name for path in (fitted / "export").iterdir())
    assert files == ["model.md", "model.onnx", "model.pt2", "model.safetensors"]
    run(
        [
            "predict",
            "--ckpt_path",
            str(fitted),
            "--data.predict_dir",
            str(own),
            "--trainer.accelerator",
            "cpu",
            *QUIET,
        ]
    )
    truth = lines(fitted / "predictions.csv")
    assert len(truth) == 7
    for name in ("onnx", "pt2", "safetensors"):
        trust = ["--trust"] if name == "pt2" else []
        predict_exported(
            [
                "--ckpt_path",
                str(fitted / "export" / f"model.{name}"),
                "--data.predict_dir",
                str(own),
                *trust,
            ]
        )
        predictions = lines(fitted / "export" / "predictions.csv")
        assert [line[:2] for line in predictions] == [line[:2] for line in truth]
        assert [float(line[2]) for line in predictions[1:]] == pytest.approx(
            [float(line[2]) for line in truth[1:]], abs=1e-4
        )
    capsys.readouterr()
    compact_command(["--ckpt_path", str(fitted), "--output", str(fitted / "compacted")])
    assert "layers.2.weight  32x32x3x3" in capsys.readouterr().out
    assert (fitted / "compacted.safetensors").stat().st_size < 4 * 260_458 / 1.5


@pytest.mark.parametrize(
    ("command", "args", "message"),
    [
        (compact_command, ["--ckpt_path", "nowhere"], "no checkpoint at 'nowhere'"),
        (
            compact_command,
            ["--ckpt_path", ".", "--output", "model.onnx"],
            "'model.onnx' ends on .onnx, which is added; leave it out",
        ),
        (
            export_command,
            ["--ckpt_path", ".", "--output", "/dev/null/model"],
            "--output: the folder '/dev/null' cannot be made",
        ),
        (compact_command, [], "the following arguments are required: --ckpt_path"),
        (
            export_command,
            ["--ckpt_path", "nowhere", "--format", "tflite"],
            "invalid choice: 'tflite'",
        ),
        (
            predict_exported,
            ["--ckpt_path", "nowhere.onnx", "--data.predict_dir", "."],
            "there is no file 'nowhere.onnx'",
        ),
    ],
)
def test_a_mistake_in_an_option_is_reported_in_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], command, args, message
) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit):
        command(args)
    stderr = capsys.readouterr().err
    assert message in stderr
    assert len(stderr.splitlines()) == 1


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refused(
    capsys: pytest.CaptureFixture[str], folder: Path, command, args: list[str], message: str
) -> None:  # type: ignore[no-untyped-def]
    """Check that a command exits with one sentence and neither adds nor removes a file."""
    before = files(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as raised:
        command(args)
    assert raised.value.code != 0
    stderr = capsys.readouterr().err
    assert message in stderr
    assert len(stderr.splitlines()) == 1
    assert files(folder) == before


def test_a_damaged_or_incompatible_checkpoint_is_reported_in_one_sentence(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = fitted / "checkpoints" / "last.ckpt"
    whole = checkpoint.read_bytes()
    checkpoint_content = torch.load(checkpoint, weights_only=True)
    checkpoint_content["state_dict"] = {
        f"network.{name}": tensor for name, tensor in FC().state_dict().items()
    }
    torch.save(checkpoint_content, foreign := io.BytesIO())
    for content, message in (
        (whole[: len(whole) // 2], "cannot be read"),
        (b"something else", "cannot be read"),
        (foreign.getvalue(), "the file lacks network.layers.0.weight"),
    ):
        checkpoint.write_bytes(content)
        for command in (compact_command, export_command):
            refused(capsys, fitted.parents[1], command, ["--ckpt_path", str(checkpoint)], message)


def test_predicting_from_damaged_or_incompatible_files_is_an_error(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, own = fitted.parents[1], fitted.parents[1] / "own"
    own.mkdir()
    Image.new("L", (28, 28)).save(own / "a.png")
    export_command(["--ckpt_path", str(fitted), "--output", "model"])
    given = ["--data.predict_dir", str(own), "--trust"]
    for name in ("onnx", "pt2", "safetensors"):
        whole = Path(f"model.{name}").read_bytes()
        for content in (whole[: len(whole) // 2], whole[:-1], b"", b"something else"):
            Path(f"half.{name}").write_bytes(content)
            message = f"'half.{name}' cannot be read as"
            refused(
                capsys, folder, predict_exported, ["--ckpt_path", f"half.{name}", *given], message
            )
    refused(
        capsys,
        folder,
        predict_exported,
        ["--ckpt_path", "model.md", *given],
        "'model.md' is not one of .safetensors, .onnx, .pt2",
    )
    (own / "b.png").write_bytes((own / "a.png").read_bytes()[:40])
    refused(capsys, folder, predict_exported, ["--ckpt_path", "model.onnx", *given], "b.png")
    refused(
        capsys,
        folder,
        predict_exported,
        ["--ckpt_path", "model.onnx", "--data.predict_dir", "none"],
        "there is no folder 'none'",
    )


def test_a_failing_format_leaves_the_model_card_of_the_other_formats(
    fitted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "onnx", lambda *_: 1 / 0)
    with pytest.raises(SystemExit):
        export_command(["--ckpt_path", str(fitted), "--output", "model", "--data.batch_size", "1"])
    assert (
        "cannot be written as .onnx, and no file was written: division by zero"
        in capsys.readouterr().err
    )
    assert "`model.safetensors`" in Path("model.md").read_text()
    assert not Path("model.onnx").exists()


def test_compacting_a_dense_run_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["fit", "-c", "demo", "-c", "pruners/dense", "--run", "dense", *SHORT])
    with pytest.raises(SystemExit):
        compact_command(["--ckpt_path", "lightning_logs/dense"])
    assert "was trained dense" in capsys.readouterr().err
