# SPDX-License-Identifier: Apache-2.0
"""Version 2 of this module's tables, in some of the processes that a test starts.

As a program, `earlier_version.py FOLDER python -m MODULE ARGUMENTS...` runs a module as
Python does. If the process is named in the folder, this package is what it was then.
"""

import io
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

# The last commit of version 2.
COMMIT = "395b1b707219e451fee7a3a1ee88b81878522d08"

PROCESSES = "processes"


class EarlierVersion:
    """Says which processes are of the earlier version."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with tarfile.open(fileobj=io.BytesIO(_archive())) as archive:
            archive.extractall(folder, filter="data")

    @property
    def wrapper(self) -> list[str]:
        """The command that runs the Python behind it."""
        return [sys.executable, __file__, str(self._folder)]

    def run(self, *processes: str) -> None:
        """Say which processes are, from their next start on."""
        (self._folder / PROCESSES).write_text(" ".join(processes))


def _archive() -> bytes:
    def git(*command: str) -> bytes:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parents[1]), *command],
            check=True,
            capture_output=True,
        ).stdout

    try:
        git("cat-file", "-e", COMMIT)
    except subprocess.CalledProcessError:
        # A clone without its history.
        git("fetch", "--quiet", "--depth=1", "origin", COMMIT)
    return git("archive", "--format=tar", COMMIT, "synapse_federation_admin")


def _main() -> None:
    folder, _, _, module = sys.argv[1:5]
    name = Path(sys.argv[-1]).stem
    # The folder of this file.
    del sys.path[0]
    processes = (Path(folder) / PROCESSES).read_text().split()
    if {"homeserver": "main"}.get(name, name) in processes:
        sys.path.insert(0, folder)
    del sys.argv[:4]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
