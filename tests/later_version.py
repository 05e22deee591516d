# SPDX-License-Identifier: Apache-2.0
"""A later version of this module, in some of the processes that a test starts.

As a program, `later_version.py FILE python -m MODULE ARGUMENTS...` runs a module as
Python does. If the process is named in a file, the module's tables are those of the
version after this one there: a column is new, and there are rows with words that this
version does not know.
"""

import json
import runpy
import sys
import time
from pathlib import Path

from synapse.module_api import LoggingTransaction

from synapse_federation_admin.storage import definitions
from synapse_federation_admin.storage.definitions import VERSIONS, Version, add_column

THIS = VERSIONS[-1].number


_AUDIT = "entry_id, ts, action, destination, user_id, instance, outcome, details"
# Not so long ago that housekeeping would delete it.
_TS = int(time.time() * 1000) - 3_600_000
# Words that are not known are written of one destination.
_ROWS = (
    f"INSERT INTO federation_admin_audit ({_AUDIT}, weather) VALUES "
    f"('later', {_TS}, 'teleport', ?, '@a:b', 'main', 'landed', '{{}}', 'rain')",
    "INSERT INTO federation_admin_outages (start_ts, end_ts, destination, ended, kinds,"
    f" weather) VALUES ({_TS}, {_TS + 1}, ?, 'gave_up', 'gone quantum', 'rain') ",
    "INSERT INTO federation_admin_failures (destination, kind, message, first_ts, "
    "last_ts, count, instance, issuer) "
    f"VALUES (?, 'quantum', 'Uncertain', {_TS}, {_TS}, 1, 'main', '') ",
)
_RUN = (
    "INSERT INTO federation_admin_runs (run_id, action, status, entry_id, user_id, "
    "criteria, options, names, created_ts, updated_ts, matched, outcomes, totals, "
    "errors) VALUES ('later', 'teleport', 'landing', 'later', '@a:b', "
    """'{"weather": "rain"}', '{"speed": "c"}', '[]', """
    f"{_TS}, {_TS}, 0, "
    """'{"lost": 1}', '{}', '{}')"""
)


def later(destination: str) -> Version:
    """Return the version after this one."""

    def upgrade(txn: LoggingTransaction) -> None:
        add_column(txn, "audit", "weather", "TEXT")
        add_column(txn, "outages", "weather", "TEXT NOT NULL DEFAULT 'fine'")
        for row in _ROWS:
            txn.execute(row, (destination,))
        txn.execute(_RUN)

    return Version(THIS + 1, THIS, upgrade)


class LaterVersion:
    """Says which processes are of the later version."""

    def __init__(self, file: Path, destination: str) -> None:
        self._file = file
        self._destination = destination
        self.run()

    @property
    def wrapper(self) -> list[str]:
        """The command that runs the Python behind it."""
        return [sys.executable, __file__, str(self._file)]

    def run(self, *processes: str) -> None:
        """Say which processes are, from their next start on."""
        found = {"processes": processes, "destination": self._destination}
        self._file.write_text(json.dumps(found))


def _main() -> None:
    file, _, _, module = sys.argv[1:5]
    name = Path(sys.argv[-1]).stem
    told = json.loads(Path(file).read_text())
    if {"homeserver": "main"}.get(name, name) in told["processes"]:
        definitions.VERSIONS = (*VERSIONS, later(told["destination"]))
    # The folder of this file.
    del sys.path[0]
    del sys.argv[:4]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
