# SPDX-License-Identifier: Apache-2.0
"""Runs: `runs`, `watch`, `cancel`, and how one is begun and seen through."""

import time
from collections.abc import Iterator

import click
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from synapse_federation_admin.cli.client import Json, segment
from synapse_federation_admin.cli.exits import Exit, FailedError
from synapse_federation_admin.cli.options import NAME, Asked, command
from synapse_federation_admin.cli.output import (
    Column,
    ago,
    grid,
    line,
    pill,
    until,
    user,
)
from synapse_federation_admin.cli.words import WIDE, exact
from synapse_federation_admin.durations import duration
from synapse_federation_admin.wording import outcomes
from synapse_federation_admin.wording.amounts import count
from synapse_federation_admin.wording.causes import cause

# How often a run is looked at, and for how long Synapse may be away meanwhile, as when
# it is restarted: the run goes on then.
_EVERY_S = 1.0
_AWAY_S = 600.0

# What a reconnect ends with where nothing is left to do, and where a server fails.
_WELL = {"connected", "no_longer_failing", "skipped"}
_FAILS = {"still_failing", "refused"}

_run_argument = click.argument("run_id", metavar="RUN", type=NAME)


@command("/runs")
def runs(asked: Asked, params: Json) -> None:
    """List what is being done, or was done, to many servers; the newest first."""
    answer = asked.client.get("/runs", params)
    is_wide = asked.out.console.width >= WIDE
    columns = (
        # It is to be copied.
        Column("Run", lambda run: run["id"], is_whole=True),
        Column("What", lambda run: outcomes.action(run["action"])),
        Column("Which", _which),
        Column("Status", _status),
        Column(">Done", outcomes.done),
        Column("Who", lambda run: user(run.get("user_id"), is_wide)),
        Column("When", lambda run: ago(run.get("created_ts"))),
    )
    asked.out.answer_list(answer, "runs", columns, "No run was made yet.")


def _which(run: Json) -> str:
    return outcomes.which(run.get("criteria", {}), run.get("options", {}))


def _status(run: Json) -> Text:
    return pill(*outcomes.run_status(str(run.get("status"))))


@command()
@_run_argument
def watch(asked: Asked, run_id: str) -> int:
    """Look at a run until it ends, and tell what came of it.

    The exit status is 0 if all went well, 3 if a run that reconnects has left servers
    that fail, and 1 if it was cancelled or has failed, or if of others it is not known
    that what waits arrives. Ctrl-C ends this, and not the run.
    """
    return see_through(asked, asked.client.get(f"/runs/{segment(run_id)}"))


@command()
@_run_argument
def cancel(asked: Asked, run_id: str) -> None:
    """Cancel a run. What is already done stays done."""
    run = asked.client.call(
        "DELETE", f"/_synapse/admin/v2/federation/runs/{segment(run_id)}"
    )
    asked.out.answer(run, lambda: asked.out.show(*_told(run)))


def see_through(asked: Asked, run: Json) -> int:
    """Show a run until it ends; return the exit status."""
    out, run_id = asked.out, str(run["id"])
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        console=out.errors,
        transient=True,
        disable=not out.is_live,
    )
    with progress:
        task = progress.add_task(outcomes.action(run["action"]), told="", total=None)
        try:
            while run["ended_ts"] is None:
                is_begun = run["status"] == "running"
                progress.update(
                    task,
                    completed=run["done"],
                    total=run["matched"] if is_begun else None,
                    told=_so_far(run),
                )
                time.sleep(_EVERY_S)
                run = _again(asked, run_id)
        except KeyboardInterrupt:
            progress.stop()
            out.note(f"The run goes on: watch {run_id}, or cancel {run_id}.")
            raise
    out.answer(run, lambda: out.show(*_told(run)))
    if run["status"] != "complete":
        return Exit.FAILED
    left = set(run.get("outcomes", {})) - _WELL
    if run["action"] == "reconnect" and left:
        return Exit.DESTINATION_FAILS if left & _FAILS else Exit.FAILED
    return Exit.FINE


def _again(asked: Asked, run_id: str) -> Json:
    """Read a run once more; wait while Synapse is away."""
    since = time.monotonic()
    while True:
        try:
            return asked.client.get(f"/runs/{segment(run_id)}")
        except FailedError as e:
            away_s = time.monotonic() - since
            if e.exit_code != Exit.UNREACHABLE or away_s > _AWAY_S:
                raise
            time.sleep(_EVERY_S)


def _so_far(run: Json) -> str:
    parts = [outcomes.done(run)]
    if rate := run.get("rate_per_second"):
        parts.append(f"{rate:.1f} a second")
    if ends := run.get("estimated_end_ts"):
        parts.append(f"ends {until(ends)}")
    return line(run["error"]).plain if run.get("error") else " · ".join(parts)


def _told(run: Json) -> Iterator[RenderableType]:
    head = f"{outcomes.action(run['action'])}: {_which(run)} "
    yield Text.assemble((line(head).plain, "bold"), _status(run))
    yield grid(_facts(run))
    if run.get("error"):
        yield line(f"  {run['error']}", "red")
    found = sorted(run.get("outcomes", {}).items(), key=lambda item: -item[1])
    if found:
        yield Text("\nWhat came of it", "bold")
        yield grid(
            (
                pill(*outcomes.outcome(run["action"], name)),
                Text(count(number), justify="right"),
            )
            for name, number in found
        )
    for name, number in run.get("totals", {}).items():
        yield line(f"  {outcomes.TOTALS.get(name, name)}: {count(number)}")
    for kind, errors in run.get("errors", {}).items():
        yield line(f"{cause(kind)}: {count(errors['count'])}", "bold")
        yield grid(
            (line(each["destination"]), line(each["message"]))
            for each in errors.get("recent", ())
        )


def _facts(run: Json) -> Iterator[tuple[RenderableType, ...]]:
    yield "Run", str(run["id"])
    yield "By", line(run.get("user_id"))
    if run.get("reason"):
        yield "Why", line(run["reason"])
    yield "Asked for", exact(run.get("created_ts"))
    yield "Done", outcomes.done(run)
    if run.get("ended_ts") and run.get("started_ts"):
        yield "Took", duration(run["ended_ts"] - run["started_ts"])
