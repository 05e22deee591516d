# SPDX-License-Identifier: Apache-2.0
"""What is taken note of, and how it comes into the database.

All of it asks one recorder, in the same few words: it stands together.
"""

import json
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import pytest
from module_case import ModuleTestCase
from twisted.internet import error as net
from twisted.internet.defer import (
    CancelledError,
    TimeoutError as DeferredTimeoutError,
    ensureDeferred,
)
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived

from synapse_federation_admin import limits
from synapse_federation_admin.history import recorder as module
from synapse_federation_admin.history.recorder import SUCCESS_EVERY_MS, Recorder
from synapse_federation_admin.history.store import HistoryStore
from synapse_federation_admin.homeserver import relied_on
from synapse_federation_admin.homeserver.errors import (
    HttpResponseException,
    RequestSendFailed,
    UntrustedCertificateError,
)
from synapse_federation_admin.homeserver.federation import Federation
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.homeserver.traffic import _observers

# What is told differs between Synapse's releases, and is in test_traffic.py.
pytestmark = pytest.mark.one_synapse

WRITE_S = 3.1


def refused() -> RequestSendFailed:
    return RequestSendFailed(net.ConnectionRefusedError(), can_retry=True)


def untrusted(code: int, issuer: str) -> RequestSendFailed:
    reason = Failure(UntrustedCertificateError(code, 0, issuer))
    return RequestSendFailed(ResponseNeverReceived([reason]), can_retry=True)


def rejected(text: str) -> HttpResponseException:
    return HttpResponseException(401, "No", json.dumps({"error": text}).encode())


class RecorderTestCase(ModuleTestCase):
    """The recorder of the module, which Synapse has loaded."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        found, _ = _observers[self.hs.hostname]
        assert isinstance(found, Recorder)
        self.recorder = found
        # The tables are there, and what is done at the start is over.
        self.pass_s(30)

    def pass_s(self, seconds: float) -> None:
        """Let time pass, and the database's work be done."""
        self.reactor.advance(seconds)
        self.pump()

    @contextmanager
    def writes(self) -> Iterator[list[float]]:
        """Have a list in which there is when each transaction of the recorder began."""
        real = Homeserver.run_db_interaction
        began: list[float] = []

        async def run(own: Homeserver, desc: str, func: Any, **kwargs: Any) -> Any:
            if desc == "federation_admin_record":
                began.append(self.reactor.seconds())
            return await real(own, desc, func, **kwargs)

        with mock.patch.object(Homeserver, "run_db_interaction", run):
            yield began

    def rows(self, table: str = "failures") -> list[dict[str, Any]]:
        columns = {
            "failures": "destination, kind, message, first_ts, last_ts, count, "
            "instance, issuer",
            "successes": "destination, last_ts, recovered_ts",
            "outages": "destination, start_ts, last_kind",
        }[table]

        rows = self.run_sql(
            f"SELECT {columns} FROM federation_admin_{table} ORDER BY 1, 2"
        )
        return [dict(zip(columns.split(", "), row, strict=True)) for row in rows]

    def counts(self) -> dict[tuple[str, str], int]:
        return {(row["destination"], row["kind"]): row["count"] for row in self.rows()}

    def other(self) -> Recorder:
        """Make the recorder of another process."""
        return Recorder(self.homeserver, self.tables)


@pytest.mark.database
class WritesTestCase(RecorderTestCase):
    def test_no_answer(self) -> None:
        """What is answered with 2xx and is no answer is a failure, and no outage.

        Nor is it a success before.
        """
        sent: Any = mock.Mock(destination="a.example", is_answered=True, bytes=9)
        self.recorder.watch(mock.Mock(under_way=lambda _: sent))
        self.recorder.answered("a.example", 9)
        for sent.destination, sent.error in (
            ("a.example", RequestSendFailed(ValueError("no JSON"), can_retry=False)),
            ("a.example", RuntimeError("ours")),
            # It has no end.
            ("c.example", RequestSendFailed(DeferredTimeoutError(), can_retry=True)),
        ):
            self.recorder.transaction_ended(sent)
        # What was told already is not told again.
        sent.destination, sent.error, sent.is_answered = "b.example", refused(), False
        self.recorder.failed("b.example", refused())
        self.recorder.transaction_ended(sent)
        self.pass_s(WRITE_S)
        self.assertEqual(
            self.counts(),
            {
                ("a.example", "invalid_response"): 1,
                ("b.example", "connection_refused"): 1,
                ("c.example", "response_timeout"): 1,
            },
        )
        self.assertEqual(
            [row["destination"] for row in self.rows("outages")], ["b.example"]
        )
        self.recorder.watch(mock.Mock(under_way=lambda _: None))
        # Nor is it one that something else is answered since.
        self.recorder.answered("a.example", 9)
        self.pass_s(WRITE_S)
        self.assertEqual(self.rows("successes"), [])
        # And what is taken next is taken note of at once.
        sent.destination, sent.error = "a.example", None
        self.recorder.transaction_ended(sent)
        self.pass_s(WRITE_S)
        (success,) = self.rows("successes")
        self.assertEqual(success["destination"], "a.example")
        # So it is with any request once Synapse has backed off, and that is over.
        sent.error = RequestSendFailed(ValueError("no JSON"), can_retry=False)
        sent.is_answered = True
        self.recorder.transaction_ended(sent)
        self.recorder.recovered("a.example")
        self.pass_s(300)
        now_ts = self.homeserver.now_ms()
        self.recorder.answered("a.example", 9)
        self.pass_s(WRITE_S)
        (success,) = self.rows("successes")
        self.assertEqual(success["last_ts"], now_ts)

    def test_sent_again(self) -> None:
        """What is answered with 503 and is to be sent again is a failure, no outage.

        Not where Synapse gives up at once, which is told by itself; nor is 429, which
        may be said of a second transaction at once.
        """
        for number, (status, has_ended) in enumerate(
            [(503, False), (429, False), (502, True)]
        ):
            sent: Any = mock.Mock(
                destination=f"{number}.example", status=status, has_ended=has_ended
            )
            self.recorder.transaction_refused(sent)
        for seconds in (1.1, WRITE_S):
            self.pass_s(seconds)
        self.assertEqual(self.counts(), {("0.example", "http_error"): 1})
        self.assertEqual(self.rows("outages"), [])
        self.assertIn("was answered HTTP 503, and is", self.rows()[0]["message"])

    def test_transactions(self) -> None:
        """However many fail within three seconds, a thousand take one transaction."""
        with self.writes() as writes:
            # Where nothing happens the database is left alone.
            self.get_success(self.recorder.write())
            self.pass_s(60)
            for number in range(900):
                self.recorder.failed(f"{number % 300}.example", refused())
            self.pass_s(2.5)
            self.assertEqual((writes, self.rows()), ([], []))
            self.pass_s(0.6)
            self.assertEqual(len(writes), 1)
            self.assertEqual(
                self.counts(),
                {(f"{n}.example", "connection_refused"): 3 for n in range(300)},
            )
            for number in range(2500):
                self.recorder.failed(f"{number}.example", refused())
            self.pass_s(WRITE_S)
            self.assertEqual(len(writes), 4)
        self.assertEqual(len(self.rows()), 2500)

    def test_two_instances(self) -> None:
        """What two processes count adds up, though their times overlap.

        What the last of them was told is shown, and when the last saw it recover,
        whoever writes last.
        """
        late, early = self.other(), self.other()
        processes = {"early": early, "late": late}
        began_ts = self.clock.time_msec()
        said = 0
        # Whoever writes last, it is what was said last that is shown.
        for count, written in (4, "late early"), (6, "early late"):
            while said < count:
                for name, process in processes.items():
                    said += 1
                    with mock.patch.object(Homeserver, "instance_name", name):
                        process.failed("a.example", rejected(str(said)))
                    self.reactor.advance(0.2)
            last_ts = self.clock.time_msec() - 200
            for name in written.split():
                self.get_success(processes[name].write())
            (row,) = self.rows()
            self.assertEqual((row["first_ts"], row["last_ts"]), (began_ts, last_ts))
            self.assertEqual((row["count"], row["instance"]), (count, "late"))
            self.assertIn(f"HTTP 401 {count}", row["message"])
        for process in (early, late):
            last_ts = self.clock.time_msec()
            process.recovered("a.example")
            self.reactor.advance(0.2)
        for process in (late, early):
            self.get_success(process.write())
        (row,) = self.rows("successes")
        self.assertEqual((row["recovered_ts"], row["last_ts"]), (last_ts, last_ts))

    def test_last_issuer(self) -> None:
        """Kept is who issued the certificate of the last failure, written or not."""
        for issuers in (("CN=first", "CN=last"), ("CN=newest",)):
            for issuer in issuers:
                self.recorder.failed("a.example", untrusted(20, issuer))
            self.pass_s(WRITE_S)
            (kept,) = self.rows()
            self.assertEqual(
                (kept["kind"], kept["issuer"]), ("tls_untrusted", issuers[-1])
            )


@pytest.mark.database
class BoundsTestCase(RecorderTestCase):
    @contextmanager
    def away(self) -> Iterator[None]:
        """Have the database refuse what is written, as if it was away."""
        self.refuse_changes("federation_admin_failures")
        with mock.patch.object(Homeserver, "is_database_away", return_value=True):
            yield
        self.accept_changes("federation_admin_failures")

    @mock.patch.object(limits, "RECORDS_WRITTEN", 25)
    @mock.patch.object(limits, "WAITING_RECORDS", 50)
    def test_bounded(self) -> None:
        """Beyond the limit nothing is added, and it is said once; known ones count."""
        with self.assertLogs(module.logger, "WARNING") as logs:
            for number in range(80):
                self.recorder.failed(f"{number:02}.example", refused())
                self.recorder.answered(f"up{number}.example")
        self.assertEqual(len(logs.records), 1)
        self.recorder.failed("00.example", refused())
        self.pass_s(WRITE_S)
        counts = self.counts()
        self.assertEqual((len(counts), len(self.rows("successes"))), (50, 50))
        self.assertEqual(counts["00.example", "connection_refused"], 2)
        # There is room again, and a word about it when there is none again.
        with self.assertLogs(module.logger, "WARNING") as logs:
            for number in range(60):
                self.recorder.failed(f"later{number}.example", refused())
        self.assertEqual(len(logs.records), 1)
        self.pass_s(WRITE_S)
        self.assertEqual(len(self.rows()), len(counts) + 50)

    @mock.patch.object(limits, "RECORDS_WRITTEN", 25)
    @mock.patch.object(limits, "WAITING_RECORDS", 50)
    def test_full_because_of_the_database(self) -> None:
        """Where the database fails it is said once, and once that the rest is lost."""
        with self.away(), self.assertLogs("synapse_federation_admin") as logs:
            for number in range(40):
                self.recorder.failed(f"{number}.example", refused())
            for _ in range(3):
                self.pass_s(WRITE_S)
            for number in range(40, 80):
                self.recorder.failed(f"{number}.example", refused())
            for _ in range(3):
                self.pass_s(WRITE_S)
        said = [record.getMessage() for record in logs.records]
        self.assertEqual(len(said), 2, said)
        self.assertIn("federation_admin_record: the database is away: ", said[0])
        self.assertIn("is not recorded until", said[1])
        self.pass_s(10)
        self.assertEqual(len(self.rows()), 50)

    def test_bug(self) -> None:
        """What cannot be written because of a bug is logged, and not tried again."""
        self.recorder.failed("a.example", refused())
        self.refuse_changes("federation_admin_failures")
        with self.assertLogs("synapse_federation_admin", "ERROR") as logs:
            self.pass_s(WRITE_S)
        self.assertIn("Traceback", logs.output[0])
        self.accept_changes("federation_admin_failures")
        self.recorder.failed("b.example", refused())
        self.pass_s(4 * WRITE_S)
        self.assertEqual(self.counts(), {("b.example", "connection_refused"): 1})

    def test_came_during_the_write(self) -> None:
        """What comes while the database works is written as well, soon.

        Where the write fails, what it has taken is added to that, in the right order.
        Nothing is written twice.
        """
        real = Homeserver.run_db_interaction
        for fails in (False, True):
            self.run_sql("DELETE FROM federation_admin_failures")
            began_ts = self.clock.time_msec()
            self.recorder.failed("a.example", rejected("first"))
            self.recorder.failed("b.example", refused())
            self.recorder.recovered("c.example")
            self.recorder.answered(f"up{fails:d}.example")
            later_ts: list[int] = []

            async def slow(
                own: Homeserver,
                desc: str,
                func: Any,
                *,
                later_ts: list[int] = later_ts,
                fails: bool = fails,
                **kwargs: Any,
            ) -> Any:
                if desc == "federation_admin_record" and not later_ts:
                    later_ts.append(self.clock.time_msec())
                    self.recorder.failed("a.example", rejected("second"))
                    self.recorder.recovered("c.example")
                    if fails:
                        raise RuntimeError("gone")
                return await real(own, desc, func, **kwargs)

            with (
                mock.patch.object(Homeserver, "is_database_away", return_value=True),
                mock.patch.object(Homeserver, "run_db_interaction", slow),
            ):
                self.pass_s(WRITE_S)
                self.assertEqual(len(self.rows()), 0 if fails else 2)
                self.pass_s(WRITE_S)
            first, second = self.rows()
            self.assertEqual((first["count"], second["count"]), (2, 1))
            times = (first["first_ts"], first["last_ts"])
            self.assertEqual(times, (began_ts, later_ts[0]))
            self.assertIn("second", first["message"])
            row, other = self.rows("successes")
            self.assertEqual(row["recovered_ts"], later_ts[0])
            self.assertEqual(other["destination"], f"up{fails:d}.example")
            self.assertIsNone(other["recovered_ts"])
            self.run_sql("DELETE FROM federation_admin_successes")

    def test_written_at_shutdown(self) -> None:
        """What has not been written is when Synapse shuts down."""
        self.recorder.failed("a.example", refused())
        for ending, *_ in self.reactor.triggers["before"]["shutdown"]:
            ending()
        self.pump()
        self.assertEqual(self.counts(), {("a.example", "connection_refused"): 1})

    def test_two_writes_at_once(self) -> None:
        """A write at the shutdown, while another one is under way, doubles nothing."""
        for number in range(1500):
            self.recorder.failed(f"{number}.example", refused())
        both = [ensureDeferred(self.recorder.write()) for _ in range(2)]
        self.pump()
        for one in both:
            self.successResultOf(one)
        self.assertEqual(len(self.rows()), 1500)
        self.assertEqual(set(self.counts().values()), {1})


class OddTestCase(RecorderTestCase):
    def test_long_name(self) -> None:
        """A name that no server can have does not keep others from being written."""
        name = "a." * 3000 + "example"
        self.recorder.failed(name, refused())
        self.recorder.recovered(name)
        self.recorder.answered(name)
        self.recorder.failed("a.example", refused())
        self.pass_s(WRITE_S)
        self.assertEqual(self.counts(), {("a.example", "connection_refused"): 1})
        self.assertEqual(self.rows("successes"), [])

    def test_called_off(self) -> None:
        """A request that was called off here says nothing of the destination."""
        self.recorder.failed("a.example", CancelledError())
        self.pass_s(WRITE_S)
        (row,) = self.rows()
        self.assertEqual(row["kind"], "other")
        self.assertIn("this homeserver called it off", row["message"])

    def test_bug(self) -> None:
        """A bug on this side is logged, and is no failure of the destination's."""
        with self.assertLogs("synapse_federation_admin", "ERROR") as logs:
            try:
                {}["what"]
            except KeyError as e:
                error = RequestSendFailed(e, can_retry=True)
            self.recorder.failed("a.example", error)
        self.pass_s(WRITE_S)
        self.assertEqual(self.rows(), [])
        self.assertIn("Traceback", "".join(logs.output))

    def test_has_asked_us(self) -> None:
        """That a destination asks us something proves nothing of what it answers."""
        for has_answered in (False, True):
            self.recorder.recovered("a.example", has_answered=has_answered)
            self.reactor.advance(0.001)
            self.get_success(self.recorder.write())
            found = self.get_success(
                HistoryStore(self.homeserver, self.tables).last_successes(["a.example"])
            )
            self.assertEqual(bool(found), has_answered)


@pytest.mark.database
class SuccessesTestCase(RecorderTestCase):
    def test_every_five_minutes(self) -> None:
        """That a destination answers is written at most every five minutes."""
        began_ts = self.clock.time_msec()
        with self.writes() as writes:
            for _ in range(int(SUCCESS_EVERY_MS / 1000 / 10)):
                self.recorder.answered("a.example")
                self.pass_s(10)
            self.assertEqual(len(writes), 1)
            (row,) = self.rows("successes")
            self.assertEqual(row["last_ts"], began_ts)
            self.pass_s(10)
            self.recorder.answered("a.example")
            again_ts = self.clock.time_msec()
            self.pass_s(WRITE_S)
            self.assertEqual(len(writes), 2)
        (row,) = self.rows("successes")
        self.assertEqual((row["last_ts"], row["recovered_ts"]), (again_ts, None))

    def test_after_a_failure(self) -> None:
        """After a failure it is written at once that it answers again.

        Whether its backoff ends with that, or requests fail and succeed side by side.
        """
        for recovers in (False, True):
            self.recorder.answered("a.example")
            self.pass_s(WRITE_S)
            self.recorder.failed("a.example", refused())
            if recovers:
                self.recorder.recovered("a.example")
            self.recorder.answered("a.example")
            again_ts = self.clock.time_msec()
            recovered_ts = again_ts if recovers else None
            self.pass_s(WRITE_S)
            (row,) = self.rows("successes")
            self.assertEqual(
                (row["last_ts"], row["recovered_ts"]), (again_ts, recovered_ts)
            )
        # So it is after a contact: the failure may be another process's.
        self.pass_s(1)
        self.recorder.taken("a.example")
        again_ts = self.clock.time_msec()
        self.pass_s(WRITE_S)
        self.assertEqual(self.rows("successes")[0]["last_ts"], again_ts)
        # What it does from then on does not take back that it has recovered.
        self.pass_s(SUCCESS_EVERY_MS / 1000)
        self.recorder.answered("a.example")
        self.pass_s(WRITE_S)
        (row,) = self.rows("successes")
        self.assertGreater(row["last_ts"], again_ts)
        self.assertEqual(row["recovered_ts"], recovered_ts)

    def test_second_look(self) -> None:
        """A name that leads back here is told as that, at once and afterwards.

        Each server is looked at once in an hour; and none, if that is switched off.
        """
        looks: list[str] = []

        async def is_us(_: object, name: str, **kwargs: object) -> bool:
            looks.append(name)
            await self.homeserver.sleep_ms(1000)
            return name == "us.example"

        with mock.patch.object(Federation, "is_us", is_us):
            off = Recorder(self.homeserver, self.tables, looks_twice=False)
            off.failed("off.example", rejected("no"))
            self.assertEqual(looks, [])
            for _ in range(3):
                for name in ("us.example", "them.example"):
                    self.recorder.failed(name, rejected("no"))
                self.pass_s(WRITE_S)
            self.assertEqual(sorted(looks), ["them.example", "us.example"])
            for number in range(2 * limits.SECOND_LOOKS):
                self.recorder.failed(f"{number}.example", rejected("no"))
            self.assertEqual(len(looks), 2 + limits.SECOND_LOOKS)
            # They are over, and there are no others yet.
            self.pass_s(1)
            self.recorder.failed("last.example", rejected("no"))
            self.assertEqual(len(looks), 2 + limits.SECOND_LOOKS)
            self.pass_s(WRITE_S)
        counts = {key: n for key, n in self.counts().items() if n > 1}
        self.assertEqual(
            counts, {("us.example", "is_us"): 3, ("them.example", "rejected"): 3}
        )

    def test_refused(self) -> None:
        """A refusal of what is large stands until something as large is accepted.

        By any process. That is written at once, and what is no larger is not.
        """

        def standing(recorder: Recorder) -> int | None:
            self.get_success(recorder.write())
            ((refused,),) = self.run_sql(
                "SELECT refused_bytes FROM federation_admin_failures"
            )
            return cast("int | None", refused)

        too_large = HttpResponseException(413, "No", b"")
        anew = self.other()
        self.recorder.failed("a.example", too_large, 5000)
        for size, stands in ((0, True), (4499, True), (5000, False)):
            self.recorder.answered("a.example", size)
            self.assertEqual(standing(self.recorder), 5000 if stands else None)
        # It may wait to be written, too.
        self.recorder.failed("a.example", too_large, 5000)
        self.recorder.answered("a.example", 6000)
        self.assertIsNone(standing(self.recorder))
        self.recorder.failed("a.example", too_large, 4000)
        self.assertEqual(standing(self.recorder), 4000)
        anew.answered("a.example", 3599)
        self.assertEqual(standing(anew), 4000)
        anew.answered("a.example", 4000)
        self.assertIsNone(standing(anew))
        with self.writes() as written:
            anew.answered("a.example", 4000)
            self.pass_s(WRITE_S)
        self.assertEqual(written, [])

    @mock.patch.object(limits, "ANSWERING_DESTINATIONS", 10)
    def test_few_are_known(self) -> None:
        """Of how many it is known when they answered is bounded."""
        for number in range(30):
            self.recorder.answered(f"{number}.example")
        self.pass_s(WRITE_S)
        # Who is known is not written again so soon.
        for number, writes in (29, 0), (20, 0), (19, 1), (0, 1):
            with self.writes() as written:
                self.recorder.answered(f"{number}.example")
                self.pass_s(WRITE_S)
            self.assertEqual(len(written), writes, number)


class RequestsTestCase(RecorderTestCase):
    """What is told through Synapse's logger."""

    def say(self, destination: str, error: BaseException) -> None:
        """Do as Synapse's retry limiter does."""
        logging.getLogger("synapse.util.retryutils").info(
            relied_on.FAILED, destination, type(error), error, 60_000
        )

    def test_not_kept(self) -> None:
        """The error, which holds on to the whole request, is not kept."""
        error = untrusted(10, "CN=a")
        gone = weakref.ref(error)
        self.say("a.example", error)
        del error
        self.assertIsNone(gone())
        self.pass_s(WRITE_S)
        self.assertEqual(self.counts(), {("a.example", "tls_expired"): 1})
