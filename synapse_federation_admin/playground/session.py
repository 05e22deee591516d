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

from synapse_federation_admin.playground.check import check
from synapse_federation_admin.playground.control import Control
from synapse_federation_admin.playground.display import (
    fail,
    note,
    progress,
    show,
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


def run(*, workers: bool, check_only: bool, keep: Path | None) -> int:
    """Run the command, and return its exit status.

    Args:
        workers: run Synapse with workers, PostgreSQL and Redis.
        check_only: do the main job and end, rather than wait for Ctrl-C.
        keep: a new or an empty folder to keep everything in; None for a temporary one.
    """
    if sys.platform != "linux":
        # For 127.0.0.2 and on, and for children that end with their parent.
        note("The playground runs on Linux only.")
        return 1
    for number in _SIGNALS:
        signal.signal(number, _on_signal)
    try:
        with _folder(keep) as folder:
            playground = Playground(
                folder, workers=workers, is_populated=True, progress=progress()
            )
            status = _play(playground, check_only)
    except Interrupted:
        status = _INTERRUPTED
    except (PlaygroundError, OSError) as e:
        fail(str(e))
        return 1
    if keep is None:
        show("Everything is stopped, the temporary folder removed.")
    else:
        show(f"Everything is stopped. The files are in {keep}.")
    return status


def _play(playground: Playground, check_only: bool) -> int:
    with playground:
        try:
            playground.prepare()
            if check_only:
                show_result(
                    check(playground, partial(show_failing, playground), show_diagnoses)
                )
            else:
                with Control(playground) as control:
                    show_playground(playground, control.url, control.sign_in_url)
                    _wait(playground)
        except PlaygroundError as e:
            # The log's end is of interest as it is now, before everything stops.
            fail(f"{e}\n{playground.synapse.log_tail()}")
            return 1
        finally:
            _hold()
    return 0


def _wait(playground: Playground) -> None:
    show("", "This goes on until Ctrl-C.")
    running = set(playground.synapse.processes)
    try:
        while True:
            time.sleep(0.5)
            for name in [*running]:
                if not playground.synapse.process(name).running:
                    running.discard(name)
                    note(f"Synapse's process {name} has ended.")
    except Interrupted:
        # The way to end it: no failure.
        show("", "Stopping ...")


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
