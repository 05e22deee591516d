# SPDX-License-Identifier: Apache-2.0
"""One run of the `playground` command, from an empty folder to nothing left behind."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from rich.console import Console
from rich.text import Text

from synapse_federation_admin.playground.check import check
from synapse_federation_admin.playground.control import Control
from synapse_federation_admin.playground.display import (
    Progress,
    plain,
    show_diagnoses,
    show_failing,
    show_playground,
    show_result,
)
from synapse_federation_admin.playground.processes import PlaygroundError
from synapse_federation_admin.playground.world import Playground

_INTERRUPTED = 130
"""The exit status after a signal, as shells have it for Ctrl-C."""


class Interrupted(BaseException):
    """We were asked to end: Ctrl-C, SIGTERM, or the terminal went away."""


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _hold() -> None:
    """Let no signal interrupt us from now on: we are ending already."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    _hold()
    raise Interrupted


class Session:
    """What one run of the command needs: where it shows what, and how it is ended."""

    def __init__(self, *, workers: bool, check_only: bool) -> None:
        """Set up, and start nothing yet.

        Args:
            workers: run Synapse with workers, PostgreSQL and Redis.
            check_only: do the main job and end, rather than wait for Ctrl-C.
        """
        self._workers = workers
        self._check_only = check_only
        self._console = Console()
        self._errors = Console(stderr=True)
        self._progress = Progress(self._console)

    def run(self, keep: Path | None) -> int:
        """Run, and return the exit status.

        Args:
            keep: a new or an empty folder to keep everything in; None for a temporary
                one.
        """
        if sys.platform != "linux":
            # For 127.0.0.2 and on, and for children that end with their parent.
            plain(self._errors, "The playground runs on Linux only.")
            return 1
        for number in _SIGNALS:
            signal.signal(number, _on_signal)
        try:
            with _folder(keep) as folder:
                status = self._play(folder)
        except Interrupted:
            status = _INTERRUPTED
        except (PlaygroundError, OSError) as e:
            self._fail(str(e))
            return 1
        if keep is None:
            plain(self._console, "Everything is stopped, the temporary folder removed.")
        else:
            plain(self._console, f"Everything is stopped. The files are in {keep}.")
        return status

    def _play(self, folder: Path) -> int:
        playground = Playground(
            folder, workers=self._workers, is_populated=True, progress=self._progress
        )
        with playground:
            try:
                playground.prepare()
                if self._check_only:
                    self._check(playground)
                else:
                    with Control(playground) as control:
                        show_playground(
                            self._console, playground, control.url, control.sign_in_url
                        )
                        self._wait(playground)
            except PlaygroundError as e:
                # The log's end is of interest as it is now, before everything stops.
                self._fail(f"{e}\n{playground.synapse.log_tail()}")
                return 1
            finally:
                _hold()
        return 0

    def _check(self, playground: Playground) -> None:
        result = check(
            playground,
            partial(show_failing, self._console, playground),
            partial(show_diagnoses, self._console),
        )
        show_result(self._console, result)

    def _wait(self, playground: Playground) -> None:
        self._console.print()
        plain(self._console, "This goes on until Ctrl-C.")
        ended: set[str] = set()
        try:
            while True:
                time.sleep(0.5)
                for name in playground.synapse.processes:
                    if (
                        name not in ended
                        and not playground.synapse.process(name).running
                    ):
                        ended.add(name)
                        plain(self._errors, f"Synapse's process {name} has ended.")
        except Interrupted:
            # The way to end it: no failure.
            plain(self._console, "\nStopping ...")

    def _fail(self, text: str) -> None:
        first, _, rest = text.rstrip().partition("\n")
        self._errors.print(
            Text.assemble(("Error: ", "bold red"), first), soft_wrap=True
        )
        if rest:
            plain(self._errors, rest)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Provide the folder for everything: the one to keep, or a temporary one."""
    if keep is None:
        # What cannot be removed is an error.
        with TemporaryDirectory(prefix="synapse-federation-admin-") as folder:
            yield Path(folder)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise PlaygroundError(
            f"{keep} is not an empty folder: name one that is empty or not there."
        )
    yield keep.resolve()
