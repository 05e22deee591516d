# SPDX-License-Identifier: Apache-2.0
"""Runs a program with a DNS resolver of its own, in a mount namespace of its own.

As a program, `own_resolver.py FILE python ...` runs what Python would, with FILE in
place of /etc/resolv.conf. It needs root.
"""

import ctypes
import os
import runpy
import sys
from pathlib import Path

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000


def with_resolver(folder: Path, address: str, options: str = "") -> list[str]:
    """Return what starts Python with a resolver of its own.

    Args:
        folder: For a file.
        address: Where the resolver is.
        options: As in resolv.conf.
    """
    conf = folder / "resolv.conf"
    conf.write_text(f"nameserver {address}\n{options}\n")
    return [sys.executable, __file__, str(conf)]


def _mount(conf: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for failed in (
        libc.unshare(_CLONE_NEWNS),
        # What is mounted is not to be seen outside.
        libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None),
        libc.mount(conf.encode(), b"/etc/resolv.conf", None, _MS_BIND, None),
    ):
        if failed:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _main() -> None:
    _mount(sys.argv[1])
    # The folder of this file.
    del sys.path[0]
    del sys.argv[:3]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        # Another program of this kind, in the same folder.
        sys.path.insert(0, str(Path(__file__).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _main()
