# SPDX-License-Identifier: Apache-2.0
"""Runs a Synapse process that says what the module's records cost it.

Put in front of a command that runs Synapse, as a wrapper, behind a JSON object:

- `file`: where to write, a line of JSON for each event, as it happens. An event is a
  list that begins with its name and `time.monotonic()`.
- `records`: false switches off all that takes note of federation traffic, in this
  process only; the module knows no such setting.
- `measures_calls`: measure every call on the reactor and every written batch, in CPU
  time of its thread. Written when the process ends.
- `measures_lag`: say how late the reactor was, when it was.
- `first_ms`: how long after its start the first run of the job for outages begins.
"""

import atexit
import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

# How often the reactor is to be on time, and how late is worth a word.
_LAG_EVERY_S = 0.002
_LATE_S = 0.003

# By how much later than outages the metrics are brought up to date: as in the module.
_MONITOR_LATER_MS = 3000

Json = dict[str, Any]
Function = Callable[..., Any]


class _Events:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def say(self, name: str, *more: object) -> None:
        """Write an event, on any thread."""
        self._file.write(json.dumps([name, time.monotonic(), *more]) + "\n")


class _Calls:
    """How much CPU time calls have taken of the thread that made them."""

    def __init__(self) -> None:
        self._costs: dict[str, list[tuple[float, int]]] = {}

    def measured(self, name: str | Callable[..., str], func: Function) -> Function:
        def call(*args: Any, **kwargs: Any) -> Any:
            began_ns = time.thread_time_ns()
            try:
                return func(*args, **kwargs)
            finally:
                took_ns = time.thread_time_ns() - began_ns
                key = name if isinstance(name, str) else name(*args)
                cost = (time.monotonic(), took_ns)
                self._costs.setdefault(key, []).append(cost)

        return call

    def write(self, events: _Events) -> None:
        for name, costs in self._costs.items():
            events.say("calls", name, costs)


def _switch_off() -> None:
    from synapse_federation_admin.history.gauges import Monitor
    from synapse_federation_admin.history.outages import Outages
    from synapse_federation_admin.history.recorder import Recorder

    for recorder in (Recorder, Outages, Monitor):
        recorder.start = lambda _: None  # type: ignore[method-assign]


def _say_transactions(events: _Events) -> None:
    from synapse_federation_admin.homeserver.homeserver import Homeserver

    measured = Homeserver._measured

    def said(self: Homeserver, desc: str, func: Function) -> Function:
        attempt = measured(self, desc, func)

        def run(txn: object) -> Any:
            began_s, cpu_s = time.perf_counter(), time.thread_time()
            try:
                return attempt(txn)  # type: ignore[arg-type]
            finally:
                events.say(
                    "txn",
                    desc.removeprefix("federation_admin_"),
                    time.perf_counter() - began_s,
                    time.thread_time() - cpu_s,
                )

        return run

    Homeserver._measured = said  # type: ignore[method-assign, assignment]


def _say_runs(events: _Events, first_ms: int | None) -> None:
    from synapse_federation_admin.history import gauges as monitor
    from synapse_federation_admin.history import outages

    def said(name: str, func: Function) -> Function:
        async def run(*args: Any, **kwargs: Any) -> None:
            events.say(f"{name} begins")
            await func(*args, **kwargs)
            events.say(f"{name} ends")

        return run

    outages.Outages.look = said("outages", outages.Outages.look)  # type: ignore[method-assign]
    monitor.Monitor.update = said("monitor", monitor.Monitor.update)  # type: ignore[method-assign]
    if first_ms is not None:
        outages._FIRST_MS = first_ms
        monitor._FIRST_MS = first_ms + _MONITOR_LATER_MS


def _measure_calls(events: _Events) -> None:
    from synapse_federation_admin.history import recorder
    from synapse_federation_admin.homeserver import relied_on, traffic

    calls = _Calls()
    names = {
        relied_on.FAILED: "failed",
        relied_on.RECOVERED: "recovered",
        relied_on.ANSWERED: "answered",
    }
    traffic._take = calls.measured(
        lambda msg, _: names.get(msg, "anything else"), traffic._take
    )
    recorder.Recorder._write_txn = calls.measured(  # type: ignore[method-assign]
        "write", recorder.Recorder._write_txn
    )
    atexit.register(calls.write, events)


def _measure_lag(events: _Events) -> None:
    from twisted.internet import reactor

    # Else the time for which this process waits for a core counts as ours.
    with suppress(OSError):
        os.nice(-10)
    due_s = 0.0

    def look() -> None:
        nonlocal due_s
        late_s = time.monotonic() - due_s
        if late_s > _LATE_S:
            events.say("late", late_s)
        again()

    def again() -> None:
        nonlocal due_s
        due_s = time.monotonic() + _LAG_EVERY_S
        reactor.callLater(_LAG_EVERY_S, look)

    reactor.callWhenRunning(again)


def _main() -> None:
    options: Json = json.loads(sys.argv[1])
    # What follows is "python -m a.module its arguments".
    _, _, module, *arguments = sys.argv[2:]
    sys.argv = [module, *arguments]
    sys.path.pop(0)
    if options["has_module"]:
        file = open(options["file"], "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        events = _Events(file)
        _say_transactions(events)
        if not options.get("records", True):
            _switch_off()
        _say_runs(events, options.get("first_ms"))
        if options.get("measures_calls"):
            _measure_calls(events)
        if options.get("measures_lag"):
            _measure_lag(events)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
