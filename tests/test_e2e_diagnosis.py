# SPDX-License-Identifier: Apache-2.0
"""A diagnosis names the cause, and a reconnect agrees: every fault is a real one."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import attr
import pytest
from catalogue import CATALOGUE
from deadlines import AT_ONCE_S
from faults import ADVICE, BLOCKED, told_as
from fleet import read_rows, write_failing
from laboratory import ZONE, Laboratory
from real_synapse import Admin, RealSynapse

from synapse_federation_admin.failures.kinds import (
    FAILURE_KINDS,
    UNKNOWN_KIND,
    FailureKind,
    Reason,
)
from synapse_federation_admin.playground.processes import WaitTimeoutError, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.root]

# Longer than an answer that is slow, also where this machine has much to do.
TIMEOUT_S = 8
# One of the servers takes five seconds for an answer, and this machine may be busy.
DIAGNOSIS_S = 12
CONTACT_MS = 3000


@attr.s(slots=True, auto_attribs=True)
class World:
    synapse: RealSynapse
    client: Admin
    names: dict[str, str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A homeserver, and a server for every fault."""
    folder = tmp_path_factory.mktemp("laboratory")
    with Laboratory(folder) as laboratory:
        names = {}
        for fault in CATALOGUE:
            name = f"{fault.label}.{ZONE}"
            names[fault.label] = fault.build(laboratory, name) or name
        allowed = [name for label, name in names.items() if label != "shut-out"]
        config = {
            "federation_ip_range_blacklist": [f"{BLOCKED}/32"],
            "federation_domain_whitelist": allowed,
            # One attempt, and no long one.
            "federation": {"client_timeout": f"{TIMEOUT_S}s", "max_long_retries": 0},
        }
        with RealSynapse(
            folder,
            laboratory.certificates,
            module_config={
                "diagnosis": {"timeout": f"{DIAGNOSIS_S}s"},
                # So that what is recorded is real traffic's.
                "contact_on_reset": False,
            },
            extra_config=config,
            wrapper=laboratory.wrapper,
        ) as synapse:
            write_failing(synapse, list(names.values()), failing_since_ts=1_000_000)
            yield World(synapse, synapse.as_admin(), names)


@pytest.fixture(scope="module")
def reports(world: World) -> dict[str, Any]:
    """A diagnosis of each, some of them at a time."""
    before = read_rows(world.synapse)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(world.client.diagnose, world.names.values())
        reports = dict(zip(world.names, found, strict=True))
    assert read_rows(world.synapse) == before
    return reports


def words_of(report: dict[str, Any]) -> list[str]:
    """Return what an explanation says beside its facts: what fails, and the cause."""
    if report["kind"] is None:
        return ["accepts a small transaction"]
    (kind,) = (kind for kind in FailureKind if kind.value == report["kind"])
    reason = next((each for each in Reason if each.value == report["reason"]), kind)
    headline = reason.headline or kind.headline
    return [headline, *re.split(r"\W*\{\w+\}\W*", reason.because)]


def test_faults(reports: dict[str, Any]) -> None:
    """The right verdict, kind and words of each, in time; all is bounded ASCII."""
    wrong = []
    for fault in CATALOGUE:
        report = reports[fault.label]
        if not (
            report["verdict"] == fault.verdict
            and fault.fits(report["kind"], report["reason"])
            and fault.says in (explanation := report["explanation"])
            and (fault.says or all(word in explanation for word in words_of(report)))
        ):
            wrong.append((fault, json.dumps(report, indent=1)))
        assert report["duration_ms"] < (DIAGNOSIS_S + AT_ONCE_S) * 1000, fault
        assert len(report["advice"]) <= ADVICE, fault
        for text in texts(report):
            assert text.isascii(), fault
            assert text.isprintable(), fault
            assert len(text) < 1000, fault
        assert len(json.dumps(report)) < 64_000, fault
    assert not wrong, "\n".join(f"{fault}: {report}" for fault, report in wrong)


# The stages of what a reconnect does, too: on the way there, and there.
WAY = ("name", "addresses", "connections")
THERE = ("authenticated", "version")

# What it calls otherwise, for the server does otherwise: a file that came late comes at
# once when it is asked for again.
OTHERWISE = {
    "late-hostile-file": ("well_known_invalid",),
    # A contact waits for the file for as long as it may.
    "file-hole": ("well_known_unreachable", "connection_timeout"),
}


def met_on_the_way(report: dict[str, Any]) -> str | None:
    """Return the kind of what stops a request before it is answered well."""
    failed = {
        stage["name"]: stage["kind"]
        for stage in report["stages"]
        if stage["outcome"] == "failed"
    }
    kind: str = report["kind"] or ""
    of_file = [kind] if kind.startswith("well_known_") else []
    on_the_way, there = ([failed[x] for x in of if x in failed] for of in (WAY, THERE))
    # Where the file is why, that nobody is where requests go without it is the second
    # of two facts.
    return next(iter((*of_file, *on_the_way, *there)), None)


def not_reached(reports: dict[str, Any]) -> dict[str, tuple[str | None, ...]]:
    """Return what each that is contacted, and not reached, may be called then."""
    found = {}
    for fault in CATALOGUE:
        kind = met_on_the_way(reports[fault.label])
        is_contacted = kind not in (None, "invalid_name", "not_allowed")
        if fault.verdict == "failing" and is_contacted:
            found[fault.label] = (kind, *OTHERWISE.get(fault.label, ()))
    return found


@pytest.fixture(scope="module")
def contacts(world: World, reports: dict[str, Any]) -> dict[str, Any]:
    """What a reconnect of many tells of each that is not reached."""
    names = [world.names[x] for x in not_reached(reports)]
    before = read_rows(world.synapse)
    run = world.client.start_run(
        destinations=names, timeout_ms=CONTACT_MS, ignore_unknown=True
    )
    world.client.ended(run["id"])
    assert read_rows(world.synapse) == before
    entries = world.client.audit(run_id=run["id"], action="reconnect", limit=1000)
    return {entry["destination"]: entry["details"].get("contact") for entry in entries}


@pytest.mark.one_synapse
def test_reconnect(
    world: World, reports: dict[str, Any], contacts: dict[str, Any]
) -> None:
    """A reconnect of what is not reached calls it the same, in time; the row stays."""
    wrong = {}
    for label, kinds in not_reached(reports).items():
        contact = contacts[world.names[label]]
        error = contact["error"]
        if error["kind"] not in kinds:
            wrong[label] = (error, kinds)
        assert contact["duration_ms"] < AT_ONCE_S * 1000, label
        assert told_as(error["kind"], error["message"]), (label, error)
        assert error["message"].isascii(), label
        assert error["message"].isprintable(), label
        assert len(error["message"]) < 500, label
    assert wrong == {}


def test_every_kind() -> None:
    """The catalogue has every kind of theirs, and enough faults."""
    kinds = {fault.kind.partition("/")[0] for fault in CATALOGUE if fault.kind}
    # Those of our own side are in test_e2e_diagnosis_ways.
    assert kinds == {*FAILURE_KINDS} - {UNKNOWN_KIND, "is_us", "proxy_failed"}
    assert len([fault for fault in CATALOGUE if fault.verdict != "ok"]) >= 40


def test_log(world: World, reports: dict[str, Any]) -> None:
    """What a server sends does not reach the log as it is."""
    text = (world.synapse.folder / "main.log").read_bytes()
    assert not re.search(rb"[^\n\t\x20-\x7e]", text), re.search(
        rb".{80}[^\n\t\x20-\x7e].{80}", text
    )
    assert max(map(len, text.splitlines())) < 4000
    assert not re.search(rb"^2026-01-01", text, re.MULTILINE), "a forged line"
    # Nothing of it is a surprise.
    for surprise in (b"Traceback", b"already registered"):
        assert surprise not in text, surprise
    # Nothing goes on for long when a diagnosis is over. Synapse complains some times
    # of what it calls off itself, while it waits for a well-known file.
    assert text.count(b"Re-starting finished log context") < 30


@pytest.fixture(scope="module")
def recorded(
    world: World, reports: dict[str, Any], contacts: dict[str, Any]
) -> dict[str, Any]:
    """What is recorded of real traffic with each that is not reached, by name."""
    names = [world.names[x] for x in not_reached(reports)]
    for name in names:
        world.client.reset_connection(name)
        world.client.send_to_device(f"@x:{name}", "hello")
    found: dict[str, Any] = {}

    def all_recorded() -> bool:
        for name in set(names) - set(found):
            detail = world.client.detail(name)
            if detail["last_failure"]:
                found[name] = detail
        return len(found) == len(names)

    with suppress(WaitTimeoutError):
        wait_until(all_recorded, "all to be recorded", 180, 2)
    return found


def test_history(
    world: World, reports: dict[str, Any], recorded: dict[str, Any]
) -> None:
    """What real traffic meets is recorded as what the diagnosis finds.

    An answer of 2xx that cannot be read is no success, of a contact either.
    """
    expected = not_reached(reports)
    for label in ("send-endless-plain", "send-endless-chunked"):
        # Synapse reads far more of an answer: on a slow machine its time ends first.
        expected[label] += ("response_timeout",)
    found = {x: recorded.get(world.names[x]) for x in expected}
    told = {x: detail and detail["last_failure"]["kind"] for x, detail in found.items()}
    assert {x: k for x, k in told.items() if k not in expected[x]} == {}
    for detail in filter(None, found.values()):
        failure = detail["last_failure"]
        assert told_as(failure["kind"], failure["message"]), failure
    refusing = {x: d for x, d in found.items() if x.startswith("send-")}
    assert {x for x, detail in refusing.items() if detail["last_success_ts"]} == set()


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a report."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
