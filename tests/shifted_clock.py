# SPDX-License-Identifier: Apache-2.0
"""A clock that a test sets, and that processes which it starts go by.

As a program, `shifted_clock.py FILE python -m MODULE ARGUMENTS...` runs a module as
Python does, but `time.time`, by which Twisted's timers and Synapse's timestamps go, is
shifted by the seconds that are in a file, also while it runs. What is neither of them
is not shifted: sockets, TLS, databases.
"""

import os
import runpy
import struct
import sys
import time
from pathlib import Path

_SECONDS = struct.Struct("d")


class ShiftedClock:
    """A clock, and the file in which it is told by how much it is shifted."""

    def __init__(self, file: Path, now_s: float) -> None:
        self._file = file
        self._shift_s = now_s - time.time()
        file.write_bytes(_SECONDS.pack(self._shift_s))

    @property
    def wrapper(self) -> list[str]:
        """The command that has the Python behind it go by this clock."""
        return [sys.executable, __file__, str(self._file)]

    @property
    def now_ms(self) -> int:
        return int((time.time() + self._shift_s) * 1000)

    def jump(self, seconds: float) -> None:
        self._shift_s += seconds
        # In one piece: whoever reads sees the old one or the new one.
        with self._file.open("r+b", buffering=0) as file:
            file.write(_SECONDS.pack(self._shift_s))


_real = time.time
_descriptor: list[int] = []


def _shifted() -> float:
    if not _descriptor:
        return _real()
    (shift_s,) = _SECONDS.unpack(os.pread(_descriptor[0], _SECONDS.size, 0))
    return _real() + shift_s


def install() -> None:
    """Have what is imported from now on go by a clock that can be shifted."""
    time.time = _shifted


def _main() -> None:
    file, _, _, module = sys.argv[1:5]
    # A fork has imported this file under its name, too, and Synapse after it.
    clock = sys.modules.get("shifted_clock", sys.modules[__name__])
    clock._descriptor.append(os.open(file, os.O_RDONLY))
    clock.install()
    # The folder of this file.
    del sys.path[0]
    del sys.argv[:4]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
