# SPDX-License-Identifier: Apache-2.0
"""Starts Synapse's processes as forks of one that has imported Synapse.

To import it takes two thirds of the time of a start, and tests start more than a
hundred processes. The playground's command, which has a test, starts them as operators
do.
"""

import atexit
import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from unittest import mock

# A fork imports this file, and some run another version of the package.
if TYPE_CHECKING:
    from synapse_federation_admin.playground.processes import ChildProcess

_CONTEXT = multiprocessing.get_context("forkserver")
_PR_SET_PDEATHSIG = 1


def fork(process: "ChildProcess", output: BinaryIO) -> "Fork | None":
    """Start a process, if it is one of Python's that needs no other program before."""
    command, environment = process._command, process._environment
    if command[0] != sys.executable or environment is None:
        return None
    return Fork(
        command[1:], output, process._folder, environment, process._death_signal
    )


class Fork:
    """What `subprocess.Popen` is for a process that is executed."""

    def __init__(
        self,
        arguments: Sequence[str],
        output: BinaryIO,
        folder: Path,
        environment: Mapping[str, str],
        death_signal: signal.Signals,
    ) -> None:
        # Python 3.11 does not tell the process that is forked of `sys.path`.
        path = os.pathsep.join([str(Path(__file__).parent), environment["PYTHONPATH"]])
        with mock.patch.dict(os.environ, PYTHONPATH=path):
            _CONTEXT.set_forkserver_preload(["imported_synapse"])
            forkserver.ensure_running()
        self._process = _CONTEXT.Process(
            target=run,
            args=(arguments, output.name, folder, dict(environment), death_signal),
            daemon=True,
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("a fork", timeout)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def run(
    arguments: Sequence[str],
    output: str,
    folder: Path,
    environment: dict[str, str],
    death_signal: signal.Signals,
) -> None:
    """Be what `python` is with some arguments."""
    import imported_synapse

    assert "synapse_federation_admin" not in sys.modules
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    imported_synapse.make_reactor()
    # That it is imported already: Synapse's files for a process do nothing by that.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
    try:
        if arguments[0] == "-m":
            sys.path[:] = [str(folder), *imported_synapse.PATH]
            sys.argv[:] = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[:] = [str(Path(arguments[0]).parent), *imported_synapse.PATH]
            sys.argv[:] = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
