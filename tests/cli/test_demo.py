from pathlib import Path

import pytest

from synflow_pl.cli.demo import demo


def test_the_demo_ends_with_the_table_both_accuracies_and_the_tensorboard_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [f"--trainer.limit_{part}_batches=1" for part in ("train", "val", "test")]
    demo(
        [
            "--trainer.max_epochs=1",
            "--model.network.width=4",
            *short,
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
        ]
    )

    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    ending = lines[
        next(index for index, line in enumerate(lines) if line.startswith("parameter  ")) :
    ]
    # With width 4, conv has 9 * 4 + 9 * 4 * 4 + 4 * 784 * 10 = 31,540 weights; a twentieth of them
    # is kept.
    assert [line.split()[0] for line in ending if line.startswith("layers.")] == [
        "layers.0.weight",
        "layers.2.weight",
        "layers.5.weight",
    ]
    assert "1,577" in next(line for line in ending if line.startswith("all "))
    dense, sparse, look = ending[-3:]
    assert dense.split()[:2] == ["dense", "31,540"]
    assert sparse.split()[:3] == ["sparse,", "SynFlow", "1,577"]
    assert dense.endswith("%")
    assert sparse.endswith("%")
    assert look.endswith("--logdir lightning_logs")
    assert {path.name for path in (folder / "lightning_logs").iterdir()} == {
        "demo-synflow-density0.05-seed0",
        "demo-dense-density1-seed0",
    }


def test_the_demo_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    demo(["--help"])
    assert capsys.readouterr().out.startswith("usage: synflow_pl demo")
