"""Start commands and ranks with a time limit, and report the stacks of processes that hang.

``run_command`` is for a command that ends by itself, ``run_script`` for Python source, ``Command``
for one that the test sends signals to, ``limited_ranks`` for ranks that are forked from the test's
own process. On a machine that is busy with other work, set SYNFLOW_TEST_PATIENCE: it multiplies
every limit.
"""

from __future__ import annotations

import faulthandler
import multiprocessing.process
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Command", "Finished", "Hanging", "limited_ranks", "run_command", "run_script"]

_MARK, _STACKS = "SYNFLOW_TEST_COMMAND", "SYNFLOW_TEST_STACKS"
_PATIENCE = float(os.environ.get("SYNFLOW_TEST_PATIENCE", "1"))
# Ignored by default, so that it does not end a process that has not installed the handler yet.
_DUMP = signal.SIGURG
# Python imports sitecustomize when it starts: in the command's own process, in ranks that it
# spawns and in workers of data loaders.
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
    """Error of a command that did not end within its limit or left processes behind.

    The message contains the output and the stacks of all processes.
    """


@dataclass
class Finished:
    """Exit status, output and duration of a command that ended.

    Attributes:
        returncode: Exit status, negative for a signal.
        output: Output of the command and its processes to stdout and stderr.
        seconds: Duration in seconds.
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
        args: Program and arguments; no shell is used.
        cwd: Working directory.
        env: Environment variables to add to those of this process.
        limit: Time limit in seconds.

    Returns:
        Exit status, output and duration. The exit status is not checked.

    Raises:
        Hanging: If the command does not end within ``limit`` or leaves processes behind. All its
            processes have been killed by then.
    """
    with Command(args, cwd, env) as command:
        return command.wait(limit)


def run_script(source: str, folder: Path, limit: float = 60.0) -> None:
    """Run Python source in a process of its own, and check that it ends without an error.

    Args:
        source: The source, which can import the package and the tests.
        folder: Folder of the script, which is also the working directory.
        limit: Time limit in seconds.

    Raises:
        Hanging: As :func:`run_command`.
        AssertionError: If the exit status is not 0.
    """
    (folder / "script.py").write_text(source)
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = run_command([sys.executable, "script.py"], folder, environment, limit)
    assert done.returncode == 0, done.output[-2000:]


class Command:
    """Context manager that runs a command in its own session and finally kills its processes.

    A process belongs to the command if it inherited an environment variable from it. So ranks in
    another process group or session (as torchrun's) and processes whose parent has ended are
    included.

    Args:
        args: Program and arguments; no shell is used.
        cwd: Working directory.
        env: Environment variables to add to those of this process.
        without: Names of variables of this process that the command does not inherit.
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
            # A process that is left behind would keep a pipe open, so the output goes to a file.
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
        """Output of the command and its processes to stdout and stderr so far."""
        return self._output.read_text(errors="replace")

    def processes(self) -> list[int]:
        """Return the ids of the command's running processes, including the command itself.

        They are read from ``/proc``; without it only the command itself is returned.
        """
        if not Path("/proc/self/environ").exists():
            return [self.process.pid] if self.process.poll() is None else []
        # poll() waits for a command that has ended, whose environment could not be read.
        self.process.poll()
        return sorted(
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._owns(pid)
        )

    def _owns(self, pid: int) -> bool:
        try:
            return self._mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # the process has ended, or belongs to another user
            return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the command's process group, as a terminal does for Ctrl-C."""
        os.killpg(self.process.pid, number)

    def wait_for(self, text: str, limit: float = 60.0) -> None:
        """Wait until the output contains a text.

        Args:
            text: The text.
            limit: Time limit in seconds.

        Raises:
            Hanging: If the output does not contain it within ``limit`` seconds.
            AssertionError: If the command ends without it.
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
            reached: Function that is called repeatedly.
            limit: Time limit in seconds.
            what: Verb phrase for the event in messages.

        Raises:
            Hanging: If it is not true within ``limit`` seconds.
            AssertionError: If the command ends before.
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
        """Wait until the command ends, and then until its other processes end.

        Args:
            limit: Time limit of the command in seconds.
            grace: Further seconds in which the other processes must end.

        Raises:
            Hanging: If the command or one of its processes does not end in time.
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
        """Return the Python stacks of all threads of the command's processes.

        A process that is not Python, or is still starting, has none.
        """
        running = self.processes()
        for pid in running:
            os.kill(pid, _DUMP)
        reports = []
        for pid in running:
            file, end = self._stacks / str(pid), time.monotonic() + 3
            size = -1
            # faulthandler writes at once, even while Python waits in C++. It has finished when the
            # file no longer grows.
            while time.monotonic() < end and (
                not file.exists() or not file.stat().st_size or file.stat().st_size != size
            ):
                size = file.stat().st_size if file.exists() else -1
                time.sleep(0.1)
            stack = file.read_text() if file.exists() else ""
            reports.append(f"--- process {pid}: {_command_line(pid)}\n{stack or 'no Python stack'}")
        return "\n".join(reports)

    def _kill(self) -> None:
        """Kill the command's processes repeatedly until none is left, since they may start more."""
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
    """Kill processes forked by ``multiprocessing`` in this context that run too long.

    Args:
        limit: Time limit of each process in seconds.

    Raises:
        Hanging: At the end of the context, if a process was killed. The message contains the
            stacks of all forked processes.
    """
    limit *= _PATIENCE
    reports: list[str] = []
    over = threading.Event()
    with tempfile.TemporaryFile("w+") as stacks:
        # Forked processes inherit the handler and the open file.
        faulthandler.register(_DUMP, file=stacks, all_threads=True)
        watching = threading.Thread(target=_limit, args=(limit, over, stacks, reports), daemon=True)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()
            faulthandler.unregister(_DUMP)
    if reports:
        raise Hanging(f"forked processes ran longer than {limit:g} s\n{reports[0]}")


def _limit(limit: float, over: threading.Event, stacks: Any, reports: list[str]) -> None:
    since: dict[int, float] = {}
    while not over.wait(0.2):
        # active_children() would wait for children that another thread is waiting for.
        running = sorted(child.pid for child in list(multiprocessing.process._children))  # type: ignore[attr-defined]
        since = {pid: since.get(pid, time.monotonic()) for pid in running}
        if any(time.monotonic() - began > limit for began in since.values()):
            for pid in running:
                stacks.write(f"--- process {pid}\n")
                stacks.flush()
                os.kill(pid, _DUMP)
                time.sleep(1)
            stacks.seek(0)
            reports.append(stacks.read())
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            return
