# SPDX-License-Identifier: Apache-2.0
"""Child processes that cannot outlive the playground, free ports, and waiting."""

import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

T = TypeVar("T")

# Below the range from which Linux takes ports for outgoing connections (32768 and up):
# between choosing a port and a server's binding it, no connection can take it away.
_FIRST_PORT, _LAST_PORT = 20000, 32000

# Runs between fork and exec of every child, in a fresh interpreter rather than in
# `preexec_fn`, which is unsafe in a process with threads (and warned about since
# Python 3.12). PR_SET_PDEATHSIG is 1. A change of user clears it: so that comes first.
_LAUNCHER = """
import ctypes, os, sys
parent, death_signal, uid, gid = map(int, sys.argv[1:5])
libc = ctypes.CDLL(None, use_errno=True)
if uid >= 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if libc.prctl(1, death_signal, 0, 0, 0) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG) failed: errno %d" % ctypes.get_errno())
if os.getppid() != parent:
    sys.exit("the process that started this one has ended")
os.execvp(sys.argv[5], sys.argv[5:])
"""


class PlaygroundError(Exception):
    """Something in the playground did not happen; the text is for a person.

    PlaygroundError
      ├ WaitTimeoutError   what was waited for did not come in time
      ├ ProcessError       a child process ended or did not start
      └ client.ApiError    an HTTP request was not answered with 2xx
    """


class WaitTimeoutError(PlaygroundError):
    """What was waited for did not come in time."""


class ProcessError(PlaygroundError):
    """A child process ended on its own, or did not start."""


def claim(what: str) -> bool:
    """Claim something of this machine for as long as this process lives.

    Args:
        what: what is claimed; at most 80 ASCII characters.

    Returns:
        Whether it is ours now; False if this process or another one has claimed it.
    """
    # An abstract socket (Linux): the kernel gives the name back, however we end.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(f"\0synapse-federation-admin {what}")
        except OSError as e:
            if e.errno == errno.EADDRINUSE:
                return False
            raise PlaygroundError(f"Cannot claim {what}: {e.strerror}") from e
        lock.detach()
    return True


def free_port(address: str = "127.0.0.1") -> int:
    """Choose a TCP port that is free on an address, and claim it.

    Nobody else who chooses a port here gets the same one, on no address and in no other
    process, until this process ends: neither before somebody listens at it nor while it
    is closed for a while.

    Args:
        address: the IPv4 address on which somebody will listen.
    """
    for _ in range(2000):
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, port))
            except OSError as e:
                if e.errno == errno.EADDRINUSE:
                    continue
                raise PlaygroundError(
                    f"Cannot listen on {address}: {e.strerror}"
                ) from e
        if claim(f"port {port}"):
            return port
    raise PlaygroundError(f"No free port found on {address}")


def wait_until(
    condition: Callable[[], T | None],
    what: str,
    timeout_s: float,
    interval_s: float = 0.05,
) -> T:
    """Call a function until it returns something true, and return that.

    Args:
        condition: is called every `interval_s` seconds; its exceptions are not caught.
        what: what is waited for, to be named when it does not come.
        timeout_s: seconds.
        interval_s: seconds between two calls.

    Raises:
        WaitTimeoutError: it returned nothing true for `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() >= deadline:
            raise WaitTimeoutError(f"Waited {timeout_s:g} s for {what}")
        time.sleep(interval_s)


def tail(path: Path, lines: int = 20) -> str:
    """Read the last lines of a file, or an empty text if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 64 * 1024))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


class ChildProcess:
    """A process that ends when we do, however we end.

    The kernel sends it a signal when the *thread* that started it ends (Linux's
    PR_SET_PDEATHSIG), so start it from a thread that lives as long as it is needed. It
    has a session of its own: Ctrl-C on the terminal reaches us and not it, and we stop
    what we started in the right order.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        output: Path,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        user: tuple[int, int] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        """Describe a process; `start` starts it.

        Args:
            name: what it is called in errors.
            command: program and arguments.
            output: the file to which its standard output and error are appended.
            folder: its working directory.
            environment: its whole environment; ours if not given.
            user: the user and group ids to run it as; ours if not given.
            stop_signal: what `stop` sends first.
            death_signal: what the kernel sends it when we are gone.
        """
        self.name = name
        self.output = output
        self._command = list(command)
        self._folder = folder
        self._environment = environment
        self._user = user or (-1, -1)
        self._stop_signal = stop_signal
        self._death_signal = death_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._asked_to_stop = False

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            ProcessError: it has not been started.
        """
        if self._process is None:
            raise ProcessError(f"{self.name} has not been started")
        return self._process.pid

    def start(self) -> None:
        """Start it, or start it again after it has ended."""
        if self.running:
            raise ProcessError(f"{self.name} is already running")
        self._asked_to_stop = False
        with self.output.open("ab") as output:
            self._process = self._spawn(output)

    def _spawn(self, output: BinaryIO) -> "subprocess.Popen[bytes]":
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
        launcher += [str(int(self._death_signal)), *map(str, self._user)]
        return subprocess.Popen(  # noqa: S603
            [*launcher, *self._command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            env=None if self._environment is None else dict(self._environment),
            start_new_session=True,
        )

    def check_running(self) -> None:
        """Raise an error with the end of its output unless it is running."""
        if not self.running:
            code = None if self._process is None else self._process.returncode
            raise ProcessError(
                f"{self.name} ended with exit status {code}.\n{tail(self.output)}"
            )

    def ask_to_stop(self) -> None:
        """Ask it to end, and do not wait."""
        # Once: a second signal may mean something else.
        if not self._asked_to_stop:
            self._asked_to_stop = True
            self._signal(self._stop_signal)

    def stop(self, timeout_s: float = 15) -> None:
        """Ask it to end; kill it if it has not ended after `timeout_s` seconds."""
        if self._process is None:
            return
        self.ask_to_stop()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill it (SIGKILL) and wait until it is gone."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def pause(self) -> None:
        """Stop it from running at all, without ending it (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause` (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
