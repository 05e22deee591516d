# SPDX-License-Identifier: Apache-2.0
"""Measures, inside a homeserver, for how long each turn of its reactor holds it.

As a program it stands before the command that starts Synapse, and becomes that: it
writes a line for each turn that is not short. As a module it reads them. Times are
`time.monotonic()`, which all processes of one machine share.
"""

import os
import runpy
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

# Of a turn that took less, no line is written.
_SHORT_S = 0.0005


@frozen
class Tick:
    """A turn of the reactor: all that it did between two times that it waited."""

    started: float
    wall_ms: float
    cpu_ms: float
    """The CPU time of the reactor's thread: what others took of the machine is not in
    it."""


def with_ticks(path: Path) -> Sequence[str]:
    """Return what stands before Synapse's command, to write its turns to a file."""
    return [sys.executable, __file__, str(path)]


def read_ticks(path: Path, since: float, until: float) -> Iterable[Tick]:
    """Return the turns that are not short and that began within a time."""
    for line in path.read_text().splitlines():
        tick = Tick(*map(float, line.split()))
        if since <= tick.started <= until:
            yield tick


class _Watched:
    """The reactor's poller, whose waits part the turns."""

    def __init__(self, poller: Any, file: int) -> None:
        self._poller = poller
        self._file = file
        self._began = time.monotonic()
        self._cpu = time.thread_time()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)

    def poll(self, *args: Any) -> Any:
        took = time.monotonic() - self._began
        if took > _SHORT_S:
            cpu = time.thread_time() - self._cpu
            line = f"{self._began:.6f} {took * 1000:.3f} {cpu * 1000:.3f}\n"
            os.write(self._file, line.encode())
        found = self._poller.poll(*args)
        self._began, self._cpu = time.monotonic(), time.thread_time()
        return found


def _main() -> None:
    path, _python, _m, module, *arguments = sys.argv[1:]
    from twisted.internet import reactor

    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    reactor._poller = _Watched(reactor._poller, file)  # type: ignore[attr-defined]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
