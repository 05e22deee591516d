# SPDX-License-Identifier: Apache-2.0
"""Words for what is done, and for what comes of it. Pure."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from synapse_federation_admin import limits
from synapse_federation_admin.durations import duration
from synapse_federation_admin.wording import servers
from synapse_federation_admin.wording.amounts import count, cut
from synapse_federation_admin.wording.causes import cause

ACTIONS = {
    "reset": "Reset",
    "reconnect": "Reconnect",
    "forget": "Forget",
    "cap_backoff": "Cap backoff",
    "flush_caches": "Flush caches",
    "bulk_reconnect": "Reconnect, as a run",
    "bulk_forget": "Forget, as a run",
    "bulk_cap_backoff": "Cap backoffs, as a run",
    "cancel": "Cancel a run",
}
"""What is told of each action of the audit and of runs."""

RUN_STATUSES = {
    "scheduled": ("muted", "waits to be taken up"),
    "preparing": ("muted", "looks which servers match"),
    "running": ("muted", "running"),
    "complete": ("good", "complete"),
    "cancelled": ("warn", "cancelled"),
    "failed": ("bad", "failed"),
}
"""What is told of each status of a run: its sign, and a word."""

OUTCOMES = {
    "connected": ("good", "connected"),
    "not_sent": ("warn", "answers, and nothing is sent to it"),
    "still_failing": ("bad", "still failing"),
    "refused": ("warn", "refuses what waits"),
    "pending": ("muted", "not known yet"),
    "forced": ("warn", "forced, without an answer"),
    "internal": ("bad", "a fault of this side"),
    "reset": ("good", "reset"),
    "no_longer_failing": ("good", "was not failing any more"),
    "skipped": ("muted", "left out"),
    "forgotten": ("good", "forgotten"),
    "capped": ("good", "shortened"),
    "unchanged": ("muted", "was not longer"),
    "flushed": ("good", "flushed"),
    "flushed_in_part": ("warn", "flushed in part"),
    "interrupted": ("warn", "interrupted"),
    "complete": ("good", "complete"),
    "cancelled": ("warn", "cancelled"),
    "failed": ("bad", "failed"),
}
"""What is told of each outcome: its sign, and a word."""

STATUSES = {
    "backing_off": "failing and waiting for the next try",
    "retry_due": "failing and due",
    **{status: word for status, (_, word) in servers.STATUSES.items()},
}
"""What is told of each status that a filter keeps."""

TOTALS = {
    "lost_rooms": "Rooms lost",
    "lost_to_device_messages": "Encrypted-message keys lost",
    "lost_device_list_updates": "Device changes lost",
    "kept_to_device_messages": "Encrypted-message keys kept",
}
"""What is told of each total of a run."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})

_OF_FORGET = {
    "refused": ("warn", "kept"),
    "no_longer_failing": ("muted", "not failing for so long any more"),
}


class Told(NamedTuple):
    """A value as a page tells it.

    Attributes:
        sign: `good`, `warn`, `bad` or `muted`.
        word: A few words.
    """

    sign: str
    word: str


def action(name: str) -> str:
    """Return an action in words; what a later release has written, as it is."""
    return ACTIONS.get(name, name)


def run_status(status: str) -> Told:
    """Return the status of a run in words."""
    return Told(*RUN_STATUSES.get(status, ("muted", status)))


def done(run: Mapping[str, Any]) -> str:
    """Return how far a run is: `5 of 19`, once it is known of how many."""
    if run.get("status") in ("scheduled", "preparing"):
        return RUN_STATUSES[run["status"]][1]
    return f"{count(run['done'])} of {count(run['matched'])}"


def under_way(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those of some runs that have not ended."""
    return [run for run in runs if run["ended_ts"] is None]


def outcome(of_action: str, name: str) -> Told:
    """Return an outcome in words.

    Args:
        of_action: The action: of some, an outcome says something of its own.
        name: The outcome.
    """
    special = _OF_FORGET if of_action == "forget" else {}
    return Told(*(special.get(name) or OUTCOMES.get(name) or ("muted", name)))


def which(criteria: Mapping[str, Any], options: Mapping[str, Any] = _NOTHING) -> str:
    """Return in words for which servers a run is.

    Args:
        criteria: Those of the run.
        options: What else it was asked for.
    """
    if (longest := options.get("max_retry_interval_ms")) is not None:
        return f"backoffs longer than {duration(longest)}"
    if criteria.get("all_failing"):
        return "all that are failing"
    if "destinations" in criteria:
        number = criteria["destinations"]
        return f"{count(number)} that were selected" if number != 1 else "one server"
    wanted = criteria.get("filter")
    if not isinstance(wanted, Mapping):
        return "as a later version of the module has it"
    told = []
    if name := wanted.get("destination"):
        is_glob = "*" in name or "?" in name
        told.append(f"name {'is like' if is_glob else 'contains'} “{cut(name, 80)}”")
    if statuses := wanted.get("status"):
        # What is no server name may be failing, too.
        is_failing = {*statuses} - {"invalid"} == {"backing_off", "retry_due"}
        told.append(
            "failing"
            if is_failing
            else " or ".join(STATUSES.get(each, each) for each in statuses)
        )
    least, under = wanted.get("failing_for_ms"), wanted.get("failing_under_ms")
    if least and under is not None:
        told.append(f"failing for {duration(least)} to {duration(under)}")
    elif least is not None:
        told.append(f"failing for {duration(least)} or longer" if least else "failing")
    if under is not None and not least:
        told.append(f"failing for less than {duration(under)}")
    if kinds := wanted.get("failure"):
        told.append("cause: " + " or ".join(map(cause, kinds)))
    if set(told) == {"failing"}:
        return "all that are failing"
    return ", ".join(dict.fromkeys(told)) or "all"


def why(details: Mapping[str, Any]) -> str:
    """Return what the details of an entry of the audit say of its outcome; or ""."""
    for error in (_at(details, "contact", "error"), details.get("error")):
        if isinstance(error, Mapping) and isinstance(error.get("message"), str):
            return str(error["message"])
        if isinstance(error, str):
            return error
    refused = details.get("refused")
    if isinstance(refused, Mapping):
        return refusal(refused)
    note = details.get("note")
    return note if isinstance(note, str) else ""


def _at(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def reconnected(found: Mapping[str, Any]) -> str:
    """Return what came of a reconnect, in sentences.

    Args:
        found: What the API has answered.
    """
    contact = found.get("contact") or {}
    error, server = contact.get("error") or {}, contact.get("server") or {}
    took = duration(contact.get("duration_ms") or 0)
    why = cut(str(error.get("message") or ""), 400)
    names = (server.get("name"), server.get("version"))
    itself = " ".join(cut(str(each), 80) for each in names if each)
    refused = found.get("refused")
    what = refusal(refused) if refused else "What exactly it has refused is not known."
    told = {
        "connected": f"It has taken an empty transaction in {took}, and the first of"
        " what was queued for it, if anything was. It is not failing any more."
        + (f" It says that it is {itself}." if itself else ""),
        "not_sent": f"It has taken an empty transaction in {took}.",
        "refused": f"{what} It takes an empty transaction."
        + (
            " Synapse takes the status for a success: it does not back off, and has"
            " delivered nothing."
            if is_no_answer(refused)
            else " It is in backoff again, failing since when it was before."
        ),
        "still_failing": f"{why or 'It has not taken the empty transaction'}. Nothing"
        " has changed.",
        "pending": (
            f"It has taken an empty transaction in {took}, and has not taken what waits"
            " within the time."
            if contact.get("server")
            else f"It has given no answer in {took}: it is given a minute."
        )
        + " The attempt goes on; the audit has what comes of it.",
        "forced": f"{why or 'It has not answered'}. Its backoff is cleared even so. If"
        " it fails again, it is failing since when it was before.",
        "internal": f"{why or 'What waits could not be sent'}. It tells nothing of that"
        " server; the log of Synapse has it.",
    }
    return told.get(str(found.get("outcome")), why) + _not_sent(found)


def _not_sent(found: Mapping[str, Any]) -> str:
    """Return why nothing is sent to a server, whatever it takes; or ""."""
    sender, is_known = found.get("sender") or {}, found.get("outcome") == "not_sent"
    is_late = (sender.get("behind_ms") or 0) >= limits.BEHIND_MS
    if is_late and found.get("outcome") == "connected":
        who, far = sender.get("instance"), servers.how_far(sender)
        return f" But {who} is {far}: what it has not come to is not queued yet."
    if not is_known and found.get("outcome") != "pending":
        return ""
    who = sender.get("instance") or "no process of this homeserver"
    if sender.get("state") == "nobody":
        return f" But nothing is sent to it: {who} sends."
    if sender.get("ahead_events"):
        return f" But nothing is sent to it: {who} is ahead of all events."
    if is_known or who in found.get("not_running", ()):
        return f" But nothing is sent to it: {who} does not run."
    return ""


def refusal(refused: Mapping[str, Any]) -> str:
    """Return what a server has refused, in a sentence."""
    status, size = refused.get("status"), refused.get("bytes")
    parts = [
        f"{count(number)} {word if number == 1 else f'{word}s'}"
        for key, word in (("pdus", "event"), ("edus", "EDU"))
        if (number := refused.get(key))
    ]
    keys = refused.get("to_device_messages")
    if keys:
        parts.append(f"{count(keys)} of them with encrypted-message keys")
    what = f"a transaction with {', '.join(parts)}" if parts else "what waits"
    if size is not None:
        what += f" ({count(size)} bytes)"
    if status is None:
        return f"It gave no answer to {what}."
    no_answer = ", which is no answer of a homeserver," if is_no_answer(refused) else ""
    return f"It answered HTTP {status}{no_answer} to {what}."


def is_no_answer(refused: Mapping[str, Any] | None) -> bool:
    """Tell whether what was refused was answered with 2xx, and with nothing of use."""
    return ((refused or {}).get("status") or 0) in range(200, 300)
