"""Prune `conv` to 5 % with SynFlow, and compare it with the dense network on real digits.

The network is pruned in 100 rounds. Both networks are trained and tested, and the demo prints a
diagnosis of the masks and the two test accuracies.
"""

from __future__ import annotations

import os
from typing import Any

from synflow_pl.cli.errors import exit_with_error
from synflow_pl.cli.main import run
from synflow_pl.cli.session import Session
from synflow_pl.cli.subcommands import test
from synflow_pl.training import PruneAtInit

__all__ = ["demo"]


def demo(args: list[str]) -> None:
    """Train and test a sparse and a dense network, and print their accuracies side by side.

    Args:
        args: Options of ``fit`` for both trainings, such as ``--trainer.max_epochs 1``.
    """
    if args[:1] in (["-h"], ["--help"]):
        print(f"usage: synflow_pl demo [OPTIONS OF fit]\n\n{__doc__}")
        return
    sparse = _train_and_test(["-c", "demo", "-c", "pruners/synflow", *args])
    dense = _train_and_test(["-c", "demo", "-c", "pruners/dense", *args])
    callback = next(callback for callback in sparse.callbacks if isinstance(callback, PruneAtInit))
    if sparse.run_folder is None or callback.diagnosis is None:
        exit_with_error("the demo needs its runs; leave out fast_dev_run")
    print(f"\n{callback.diagnosis.table()}\n")
    print("                       weights   test accuracy")
    for name, session, kept in (
        ("dense", dense, callback.diagnosis.total),
        ("sparse, SynFlow", sparse, callback.diagnosis.kept),
    ):
        print(f"{name:<18}{kept:>12,}{_accuracy(session):>15.2%}")
    folder = os.path.relpath(sparse.run_folder.parent)
    print(f"\nLook at both: {_beside_python('tensorboard')} --logdir {folder}")


def _train_and_test(args: list[str]) -> Session:
    session = run(["fit", *args])
    test(session, model=session.model, datamodule=session.datamodule)
    return session


def _accuracy(session: Session) -> Any:
    assert session.metrics is not None
    return session.metrics[0]["test/accuracy"]


def _beside_python(command: str) -> str:
    """Return a command as it can be typed: by its path if it is installed but not on the PATH."""
    import shutil
    import sys

    beside = os.path.join(os.path.dirname(sys.executable), command)
    return (
        command if shutil.which(command) or not os.path.exists(beside) else os.path.relpath(beside)
    )
