"""Commands and ranks that tests start: with a time limit, and with the stacks of all processes
where they hang.

``run_command`` is for a command that ends by itself, ``Command`` for one that the test sends
signals to, ``limited_ranks`` for ranks that are forked from the test's own process. On a machine
that is busy with other work, set SYNFLOW_TEST_PATIENCE: it multiplies every limit.
"""

from __future__ import annotations

import faulthandler
import multiprocessing.process
import os
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Command", "Finished", "Hanging", "limited_ranks", "run_command"]

_MARK, _STACKS = "SYNFLOW_TEST_COMMAND", "SYNFLOW_TEST_STACKS"
_PATIENCE = float(os.environ.get("SYNFLOW_TEST_PATIENCE", "1"))
# Ignored by default, so that it ends no process that is not (or not yet) able to answer it.
_DUMP = signal.SIGURG
# Python imports this module when it starts: in the command's own process, in ranks that it spawns
# and in workers of data loaders.
_SITE = f"""
import faulthandler, os, signal, sys

def register():
    file = open(os.path.join(os.environ["{_STACKS}"], str(os.getpid())), "a")
    faulthandler.register(signal.{_DUMP.name}, file=file, all_threads=True)
    globals()["kept_open"] = file

if "{_STACKS}" in os.environ:
    register()
    os.register_at_fork(after_in_child=register)
"""


class Hanging(AssertionError):
    """A command did not end within its limit, or left processes behind; the message has its output
    and their stacks.
    """


@dataclass
class Finished:
    """Exit status, output and duration of a command that ended.

    Attributes:
        returncode: exit status, negative for a signal.
        output: all that it and its processes wrote to stdout and stderr.
        seconds: how long it ran.
    """

    returncode: int
    output: str
    seconds: float


def run_command(
    args: Sequence[str | os.PathLike[str]],
    cwd: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    limit: float = 60.0,
) -> Finished:
    """Run a command to its end.

    Args:
        args: program and arguments; no shell.
        cwd: working directory.
        env: variables added to those of this process.
        limit: seconds after which the command counts as hanging.

    Returns:
        Exit status, output and duration. The exit status is not checked.

    Raises:
        Hanging: if it does not end within ``limit`` or leaves processes behind. All its processes
            are dead by then.
    """
    with Command(args, cwd, env) as command:
        return command.wait(limit)


class Command:
    """A command that runs in a session of its own; a context manager that ends all its processes.

    A process belongs to the command if it inherited an environment variable from it, so ranks that
    were put into another process group or session (as by torchrun) and processes whose parent has
    ended belong to it too.

    Args:
        args: program and arguments; no shell.
        cwd: working directory.
        env: variables added to those of this process.
        without: names of variables of this process that the command does not inherit.
        startup: Python source that each of its Python processes runs when it starts.
    """

    def __init__(
        self,
        args: Sequence[str | os.PathLike[str]],
        cwd: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        without: Sequence[str] = (),
        startup: str = "",
    ) -> None:
        self.args = [os.fspath(arg) for arg in args]
        self._place = tempfile.TemporaryDirectory()
        place = Path(self._place.name)
        (place / "site").mkdir()
        (place / "stacks").mkdir()
        (place / "site/sitecustomize.py").write_text(_SITE + startup)
        inherited = {name: value for name, value in os.environ.items() if name not in without}
        environment = {**inherited, **(env or {}), _STACKS: str(place / "stacks")}
        self._mark = f"{_MARK}={uuid.uuid4()}"
        environment[_MARK] = self._mark.partition("=")[2]
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(place / "site"), environment.get("PYTHONPATH")])
        )
        self._stacks, self._output = place / "stacks", place / "output"
        with self._output.open("wb") as output:
            self._started = time.monotonic()
            # Not a pipe: a process that is left behind would keep it open.
            self.process = subprocess.Popen(
                self.args,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: Any) -> None:
        self._kill()
        self._place.cleanup()

    @property
    def output(self) -> str:
        """All that it and its processes wrote so far to stdout and stderr."""
        return self._output.read_text(errors="replace")

    def processes(self) -> list[int]:
        """The ids of its processes that run, the first one included; by ``/proc``, and without it
        the first one alone.
        """
        if not Path("/proc/self/environ").exists():
            return [self.process.pid] if self.process.poll() is None else []
        self.process.poll()  # a process that has ended but was not waited for has an empty environment
        return sorted(
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._owns(pid)
        )

    def _owns(self, pid: int) -> bool:
        try:
            return self._mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile, or is another user's
            return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group, as a terminal does for Ctrl-C."""
        os.killpg(self.process.pid, number)

    def wait_for(self, text: str, limit: float = 60.0) -> None:
        """Wait until the output contains a text.

        Raises:
            Hanging: if it does not within ``limit`` seconds.
            AssertionError: if the command ends without it.
        """
        self.wait_until(lambda: text in self.output, limit, f"print {text!r}")

    def wait_until(
        self,
        reached: Callable[[], bool],
        limit: float = 60.0,
        what: str = "do what the test waits for",
    ) -> None:
        """Wait until ``reached()`` is true.

        Args:
            reached: called again and again.
            limit: seconds to wait.
            what: name of the event in messages, as a verb.

        Raises:
            Hanging: if it is not within ``limit`` seconds.
            AssertionError: if the command ends before.
        """
        limit *= _PATIENCE
        end = time.monotonic() + limit
        while not reached():
            if self.process.poll() is not None and not reached():
                raise AssertionError(
                    f"{self._named} ended with {self.process.returncode} and did not "
                    f"{what}:\n{self._last_output}"
                )
            if time.monotonic() > end:
                raise self._hanging(f"did not {what} within {limit:g} s")
            time.sleep(0.02)

    def wait(self, limit: float = 60.0, grace: float = 10.0) -> Finished:
        """Wait until it ends and, for ``grace`` seconds more, until its other processes end.

        Raises:
            Hanging: if it or one of its processes does not.
        """
        limit, grace = limit * _PATIENCE, grace * _PATIENCE
        try:
            returncode = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise self._hanging(f"did not end within {limit:g} s") from None
        seconds = time.monotonic() - self._started
        end = time.monotonic() + grace
        while self.processes():
            if time.monotonic() > end:
                raise self._hanging(f"ended with {returncode} and left processes behind")
            time.sleep(0.05)
        return Finished(returncode, self.output, seconds)

    @property
    def _named(self) -> str:
        return " ".join(self.args)

    @property
    def _last_output(self) -> str:
        return self.output[-3000:]

    def _hanging(self, what: str) -> Hanging:
        stacks = self.stacks()
        self._kill()
        return Hanging(
            f"{self._named}\n{what}. Its output ends with:\n{self._last_output}\n{stacks}"
        )

    def stacks(self) -> str:
        """The Python stacks of all threads of its processes; a process that is not Python, or still
        starts, has none.
        """
        running = self.processes()
        for pid in running:
            os.kill(pid, _DUMP)
        said = []
        for pid in running:
            file, end = self._stacks / str(pid), time.monotonic() + 3
            size = -1
            # The handler writes at once, also while Python waits in C++; until the file stops
            # growing it may not be done.
            while time.monotonic() < end and (
                not file.exists() or not file.stat().st_size or file.stat().st_size != size
            ):
                size = file.stat().st_size if file.exists() else -1
                time.sleep(0.1)
            stack = file.read_text() if file.exists() else ""
            said.append(f"--- process {pid}: {_command_line(pid)}\n{stack or 'no Python stack'}")
        return "\n".join(said)

    def _kill(self) -> None:
        """End all its processes; again until none is left, since one may start another
        meanwhile.
        """
        end = time.monotonic() + 10
        while running := self.processes():
            for pid in running:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if time.monotonic() > end:
                raise AssertionError(f"processes {running} of {self._named} do not end")
            time.sleep(0.02)
        self.process.wait(10)


def _command_line(pid: int) -> str:
    try:
        return (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode(errors="replace")
            .strip()
        )
    except OSError:
        return ""


@contextmanager
def limited_ranks(limit: float = 60.0) -> Iterator[None]:
    """Let no process that is forked in this context by ``multiprocessing`` run longer than
    ``limit`` seconds.

    Raises:
        Hanging: at the end of the context, if one did; it was killed then, and the message has the
            stacks of all of them.
    """
    limit *= _PATIENCE
    said: list[str] = []
    over = threading.Event()
    with tempfile.TemporaryFile("w+") as stacks:
        faulthandler.register(_DUMP, file=stacks, all_threads=True)  # the children inherit it
        watching = threading.Thread(target=_limit, args=(limit, over, stacks, said), daemon=True)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()
            faulthandler.unregister(_DUMP)
    if said:
        raise Hanging(f"forked processes ran longer than {limit:g} s\n{said[0]}")


def _limit(limit: float, over: threading.Event, stacks: Any, said: list[str]) -> None:
    since: dict[int, float] = {}
    while not over.wait(0.2):
        # Not active_children(), which waits for children that another thread waits for.
        running = sorted(child.pid for child in list(multiprocessing.process._children))  # type: ignore[attr-defined]
        since = {pid: since.get(pid, time.monotonic()) for pid in running}
        if any(time.monotonic() - began > limit for began in since.values()):
            for pid in running:
                stacks.write(f"--- process {pid}\n")
                stacks.flush()
                os.kill(pid, _DUMP)
                time.sleep(1)
            stacks.seek(0)
            said.append(stacks.read())
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            return
