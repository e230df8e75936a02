"""Run ``fit``, ``validate``, ``test`` and ``predict`` from the command line."""

from __future__ import annotations

from synflow_pl.cli.command import Command
from synflow_pl.cli.command_line import resolve_or_exit
from synflow_pl.cli.log_filters import quieten
from synflow_pl.cli.run_errors import exit_on_invalid_options
from synflow_pl.cli.session import Session
from synflow_pl.cli.subcommands import ACTIONS

__all__ = ["run"]


def run(args: list[str]) -> Session:
    """Run one command.

    A mistake in the options is one sentence on standard error and exit status 2.

    Args:
        args: Arguments after ``synflow_pl`` on the command line.

    Returns:
        The session, after its subcommand has run.
    """
    args = resolve_or_exit(args)
    quieten()
    session = Session(Command(args))
    with exit_on_invalid_options():
        session.build()
        session.open_run()
    session.execute(ACTIONS[session.command.name])
    return session
