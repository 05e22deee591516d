# SPDX-License-Identifier: Apache-2.0
"""Commands that change servers: where it is many, a dry run comes first."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from synapse_federation_admin.cli.client import Json, segment
from synapse_federation_admin.cli.exits import Exit, FailedError
from synapse_federation_admin.cli.options import (
    NAME,
    Asked,
    F,
    command,
    complete_names,
    name_argument,
)
from synapse_federation_admin.cli.output import line, pill, plain
from synapse_federation_admin.cli.runs import see_through
from synapse_federation_admin.durations import duration, parse_duration
from synapse_federation_admin.wording import outcomes
from synapse_federation_admin.wording.amounts import count, counted

_reason = click.option("--reason", metavar="TEXT", help="Why, for the audit.")

_CAREFUL = (
    _reason,
    click.option(
        "-n",
        "--dry-run",
        is_flag=True,
        help="Say what would be done, and change nothing.",
    ),
    click.option("-y", "--yes", is_flag=True, help="Do it without asking."),
    click.option(
        "--no-wait", is_flag=True, help="Begin the run, and do not wait for its end."
    ),
)


def _careful(function: F) -> F:
    """Decorate a command that first tells what it would do, and asks."""
    for option in reversed(_CAREFUL):
        function = option(function)
    return function


_names = click.argument(
    "names",
    metavar="[NAME]...",
    type=NAME,
    nargs=-1,
    shell_complete=complete_names,
)

_ignore_unknown = click.option(
    "--ignore-unknown",
    is_flag=True,
    help="Leave out the names that are no valid server names, or that Synapse has no"
    " row for.",
)

_EXITS = {
    "connected": Exit.FINE,
    "still_failing": Exit.DESTINATION_FAILS,
    "refused": Exit.DESTINATION_FAILS,
    "forced": Exit.DESTINATION_FAILS,
}


def _duration(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> int | None:
    """Return the ms of a duration such as `7d`; None if none is given."""
    found = None if value is None else parse_duration(value)
    if value is not None and found is None:
        raise click.BadParameter(
            f"{value!r} is no duration: a number and one of s, m, h, d and w, such as"
            " 7d."
        )
    return found


@command("filter")
@_names
@click.option("--all-failing", is_flag=True, help="All that are failing.")
@click.option(
    "--per-second",
    type=float,
    metavar="NUMBER",
    help="How many contacts to begin per second: 5 by default, from 0.1 to"
    " `bulk.max_per_second` of the configuration.",
)
@click.option(
    "--timeout",
    metavar="DURATION",
    callback=_duration,
    help="How long each has to answer: `10s`.",
)
@_ignore_unknown
@click.option(
    "--force",
    is_flag=True,
    help="One server: clear and wake even if it does not answer.",
)
@_careful
def reconnect(
    asked: Asked,
    /,
    names: tuple[str, ...],
    all_failing: bool,
    per_second: float | None,
    timeout: int | None,
    ignore_unknown: bool,
    force: bool,
    params: Json,
    **given: Any,
) -> int:
    """Contact servers, and reconnect those that answer.

    Each is contacted first, and changed only if that works. One NAME is contacted at
    once. For many, named or kept by a filter, a dry run comes first, then a question,
    then a run, which is watched until it ends. The exit status is 3 if any still fails.
    """
    if sum(map(bool, (names, params, all_failing))) != 1:
        raise click.UsageError("Give names, or filters, or --all-failing.")
    common = _given(reason=given["reason"], timeout_ms=timeout)
    if len(names) == 1 and not given["dry_run"]:
        return _reconnect(asked, names[0], {**common, **_given(force=force)})
    if force:
        raise click.UsageError("--force is for one server.")
    body = {
        **common,
        **_given(per_second=per_second, ignore_unknown=ignore_unknown),
        **_given(destinations=list(names), filter=params, all_failing=all_failing),
    }

    def ask(found: Json) -> str:
        _tell_sample(asked, "would be contacted", found["matched"], found["sample"])
        _tell_ignored(asked, found)
        return f"Reconnect {counted(found['matched'], 'server')}?"

    return _run(asked, "/reconnect", body, ask, given)


def _given(**values: Any) -> Json:
    # A number may be 0: that is for the API to judge.
    left_out: tuple[object, ...] = (None, "", [], {})
    return {
        name: value
        for name, value in values.items()
        if value is not False and value not in left_out
    }


def _reconnect(asked: Asked, name: str, body: Json) -> int:
    with asked.out.waiting(f"Contacting {name}"):
        found = asked.client.post(f"/destinations/{segment(name)}/reconnect", body)
    asked.out.answer(found, lambda: asked.out.show(*reconnected(name, found)))
    return _EXITS.get(str(found.get("outcome")), Exit.FAILED)


def reconnected(name: str, found: Json) -> Iterator[RenderableType]:
    """Write what came of a reconnect."""
    told = outcomes.outcome("reconnect", str(found.get("outcome")))
    yield Text.assemble((f"{line(name).plain}: ", "bold"), pill(*told))
    yield Padding(plain(outcomes.reconnected(found)), (0, 0, 0, 2))
    yield from _left_out(found)


def _left_out(found: Json) -> Iterator[RenderableType]:
    if not_running := found.get("not_running"):
        yield line(f"  Does not run: {', '.join(not_running)}", "yellow")
    if not_told := found.get("not_told"):
        why = f" ({error})" if (error := found.get("not_told_error")) else ""
        yield line(f"  Could not be told: {', '.join(not_told)}{why}", "yellow")


@command(name="flush-caches")
@name_argument
@_reason
def flush_caches(asked: Asked, name: str, reason: str | None) -> int:
    """Have every process forget what it keeps in memory of a server, as after a move.

    That is its well-known file, its SRV records, and what caches say of its backoff.
    Nothing is contacted, and no retry timing is changed: `reconnect` does that. The
    exit status is 1 if a process could not be told.
    """
    path = f"/destinations/{segment(name)}/flush_caches"
    found = asked.client.post(path, _given(reason=reason))
    told = f"{name}: flushed by {', '.join(found.get('told', ())) or 'nobody'}"
    asked.out.answer(found, lambda: asked.out.show(line(told), *_left_out(found)))
    return Exit.FAILED if found.get("not_told") else Exit.FINE


@command("filter")
@_names
@click.option(
    "--drop-to-device",
    is_flag=True,
    help="Delete the to-device messages that wait, too. Encrypted conversations depend"
    " on them: if the destination should come back, it could not read what it was"
    " sent.",
)
@_ignore_unknown
@click.option(
    "--force",
    is_flag=True,
    help="Take any filter: else --failing-for must be 30d or longer.",
)
@_careful
def forget(
    asked: Asked,
    /,
    names: tuple[str, ...],
    drop_to_device: bool,
    ignore_unknown: bool,
    force: bool,
    params: Json,
    **given: Any,
) -> int:
    """Remove what Synapse keeps of servers that are gone for good.

    Those that are named, or that the filters keep, but for those with which local users
    share rooms. A dry run comes first, and then a question. It cannot be undone.
    """
    if bool(names) == bool(params):
        raise click.UsageError("Give names, or filters.")
    body = _given(drop_to_device=drop_to_device, reason=given["reason"])
    if len(names) == 1:
        return _forget(asked, names[0], body, given)

    def ask(found: Json) -> str:
        _tell_sample(asked, "would be forgotten", found["forgotten"], found["sample"])
        _tell_ignored(asked, found)
        if refused := found.get("refused"):
            some = [str(each["destination"]) for each in found["refused_sample"]]
            _tell_sample(
                asked, "would stay: users share rooms with them", refused, some
            )
        if found["forgotten"]:
            _tell_lost(asked, found)
        return f"Forget {counted(found['forgotten'], 'server')}? It cannot be undone."

    body |= _given(destinations=list(names), filter=params, force=force)
    body |= _given(ignore_unknown=ignore_unknown)
    return _run(asked, "/forget", body, ask, given)


def _forget(asked: Asked, name: str, body: Json, given: Json) -> int:
    path, out = f"/destinations/{segment(name)}/forget", asked.out
    found = asked.client.post(path, {**body, "dry_run": True})
    if refused := found.get("refused"):
        out.answer(found, lambda: out.show(str(refused)))
        return Exit.FAILED
    _tell_lost(asked, found)
    if not given["dry_run"]:
        _ask(f"Forget {line(name).plain}? It cannot be undone.", given)
        found = asked.client.post(path, {**body, "dry_run": False})
    word = "forgotten" if found.get("forgotten") else "would be forgotten"
    out.answer(found, lambda: out.show(Text.assemble(line(f"{name}: {word}"))))
    return Exit.FINE


def _tell_lost(asked: Asked, found: Json) -> None:
    lost, kept = found.get("lost", {}), found.get("kept", {})
    told = ", ".join(
        counted(lost.get(key, 0), noun)
        for key, noun in (
            ("rooms", "room"),
            ("to_device_messages", "to-device message"),
            ("device_list_updates", "device change"),
        )
    )
    waits = counted(kept.get("to_device_messages", 0), "to-device message")
    asked.out.note(f"What waits and would be lost: {told}. Would still wait: {waits}.")


@command(name="cap-backoff")
@click.argument("longest", metavar="DURATION", callback=_duration)
@_careful
def cap_backoff(asked: Asked, /, longest: int, **given: Any) -> int:
    """Shorten backoffs that are longer than DURATION, such as 1d.

    For after `destination_max_retry_interval` was lowered in homeserver.yaml: backoffs
    that are stored already stay as they are.
    """

    def ask(found: Json) -> str:
        what = "would have their backoff shortened"
        _tell_sample(asked, what, found["matched"], found["sample"])
        return f"Shorten {count(found['matched'])} to {duration(longest)}?"

    body = {"max_retry_interval_ms": longest, **_given(reason=given["reason"])}
    return _run(asked, "/cap_backoff", body, ask, given)


# -- all of them -----------------------------------------------------------------------


def _run(
    asked: Asked, path: str, body: Json, ask: Callable[[Json], str], given: Json
) -> int:
    """Make the dry run, ask, begin the run, and see it through.

    Args:
        asked: Whom to ask, and where to write.
        path: Of the API.
        body: What to send there.
        ask: Tells what would be done, and returns the question.
        given: What was given of `_CAREFUL`.
    """
    found = asked.client.post(path, {**body, "dry_run": True})
    question = ask(found)
    is_nothing = not found.get("forgotten", found.get("matched"))
    if is_nothing or given["dry_run"]:
        if not given["dry_run"]:
            asked.out.note("There is nothing to do.")
        asked.out.answer(found, lambda: None)
        return Exit.FINE
    _ask(question, given)
    try:
        run = asked.client.post(path, {**body, "dry_run": False})
    except FailedError as e:
        if run_id := e.answer.get("id"):
            raise FailedError(
                f"A run of the same kind has not ended: watch {run_id}, or cancel"
                f" {run_id}."
            ) from e
        raise
    if given["no_wait"]:
        asked.out.answer(run, lambda: asked.out.show(str(run["id"])))
        return Exit.FINE
    return see_through(asked, run)


def _ask(question: str, given: Json) -> None:
    """Ask whether to go on.

    Raises:
        FailedError: No; or nobody can be asked.
    """
    if given["yes"]:
        return
    if not sys.stdin.isatty():
        raise FailedError(
            f"{question} Nobody can be asked here: give --yes.", Exit.USAGE
        )
    if not click.confirm(question, err=True):
        raise FailedError("Nothing was changed.")


def _tell_ignored(asked: Asked, found: Json) -> None:
    if left_out := sum(found.get("ignored", {}).values()):
        asked.out.note(
            f"Left out: {count(left_out)} that Synapse has no row for, or that are no"
            " server names."
        )


def _tell_sample(asked: Asked, what: str, number: int, some: Sequence[str]) -> None:
    asked.out.note(
        f"{counted(number, 'server')} {what}:" if number else f"None {what}."
    )
    for name in some:
        asked.out.note(f"  {line(name)}")
    if number > len(some) > 0:
        asked.out.note(f"  and {count(number - len(some))} more", "dim")
