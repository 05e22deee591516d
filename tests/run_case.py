# SPDX-License-Identifier: Apache-2.0
"""Begins runs, looks at them, and lets time pass for them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from module_case import V2, ModuleTestCase

from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.repair.runner import Runner
from synapse_federation_admin.storage.run_queue import Job

RUNS = f"{V2}/runs"


class RunsTestCase(ModuleTestCase):
    def post(self, action: str, **body: Any) -> Any:
        return self.ask("POST", f"{V2}/{action}", content=body)

    def begin(self, action: str, **body: Any) -> str:
        """Begin a run, and return its ID."""
        channel = self.post(action, **body)
        self.assertEqual(channel.code, 200, channel.result)
        self.assertEqual(channel.json_body["action"], action)
        return channel.json_body["id"]  # type: ignore[no-any-return]

    def complete(self, action: str, **body: Any) -> dict[str, Any]:
        """Make a run, and return it when it is complete."""
        run_id = self.begin(action, **body)
        self.wait(1)
        run = self.run_of(run_id)
        self.assertEqual(run["status"], "complete", run)
        return run

    def run_of(self, run_id: str) -> dict[str, Any]:
        return self.get_json(f"{RUNS}/{run_id}")  # type: ignore[no-any-return]

    def wait(self, seconds: float) -> None:
        """Let time pass, in steps in which background processes get on."""
        self.reactor.pump([0.01] * max(round(seconds / 0.01), 10))

    @contextmanager
    def nobody_begins(self) -> Iterator[None]:
        """Have runs made where no process runs background tasks: they stay scheduled.

        Whoever looks once a minute finds them: see `look`.
        """
        with mock.patch.object(Homeserver, "runs_background_tasks", False):
            yield

    @contextmanager
    def once_prepared(self, happens: Callable[[], object]) -> Iterator[None]:
        """Have something happen when a run has found what it is for."""
        prepared = Job.prepared

        async def after_that(job: Job) -> bool:
            happens()
            return await prepared(job)

        with mock.patch.object(Job, "prepared", after_that):
            yield

    def look(self) -> None:
        """Have the runner look for runs, as it does once a minute."""
        self.reactor.advance(61)

    def entries(self, run: dict[str, Any]) -> dict[str, list[str]]:
        """Return the outcomes in the audit of a run, by destination."""
        found: dict[str, list[str]] = {}
        query = f"?run_id={run['id']}&action={run['action']}&limit=1000"
        for entry in self.audit(query):
            found.setdefault(entry["destination"], []).append(entry["outcome"])
        return found

    def left_in_queue(self) -> int:
        ((count,),) = self.run_sql("SELECT COUNT(*) FROM federation_admin_run_queue")
        return int(count)

    @property
    def runner(self) -> Runner:
        """The one that the module has made."""
        signal = self.store.external_cached_functions["synapse_federation_admin.runs"]
        received = signal._received  # type: ignore[attr-defined]
        return received.__self__  # type: ignore[no-any-return]
