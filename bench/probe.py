# SPDX-License-Identifier: Apache-2.0
"""Measures, in processes of their own, what a greedy request does to a homeserver.

As a program it is the child: it reads one JSON object from its standard input and
writes one to its standard output. As a module it is the parent's side. Times are
`time.monotonic()`, which all processes of one machine share.
"""

import asyncio
import http.client
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil
from attrs import frozen

# The child, which needs none of it, is there the sooner.
if TYPE_CHECKING:
    from synapse_federation_admin.playground.synapse import SynapseServer

Json = dict[str, Any]

_HEALTH_PAUSE_S = 0.002
_SAMPLED_EVERY_S = 0.02
_TIMEOUT_S = 600


# The parent's side.


@frozen
class Reading:
    """One long answer, read to its end and thrown away."""

    status: int
    started: float
    ended: float
    size: int
    """Bytes of the body."""
    rows: int
    """How often the needle occurs in the body."""
    error: str
    """Why the answer is not whole; empty if it is."""

    @property
    def seconds(self) -> float:
        """From the request to the last byte."""
        return self.ended - self.started


@frozen
class Burst:
    """What came of many requests at the same moment."""

    started: float
    ended: float
    statuses: dict[str, int]
    """How many per status; "no answer" is one."""

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return self.ended - self.started


class Health:
    """Polls `/health` over one connection until it is stopped."""

    def __init__(self, port: int, pause_s: float = _HEALTH_PAUSE_S) -> None:
        """Start to poll, and pause after each answer."""
        self._child = _child({"do": "health", "port": port, "pause_s": pause_s})
        assert self._child.stdout is not None
        self._child.stdout.readline()
        self._samples: list[tuple[float, float]] = []

    def stop(self) -> None:
        """Stop polling."""
        out, _ = self._child.communicate()
        self._samples = [(start, ms) for start, ms in json.loads(out)]

    @property
    def samples(self) -> list[float]:
        """All latencies, in ms, once it was stopped."""
        return [ms for _, ms in self._samples]

    def between(self, since: float, until: float) -> list[float]:
        """Return the latencies in ms of polls that began within a time."""
        return [ms for start, ms in self._samples if since <= start <= until]

    def worst_ms(self, since: float, until: float) -> float:
        """Return the longest latency in ms, of polls that overlap a time."""
        return max(
            (
                ms
                for start, ms in self._samples
                if start <= until and start + ms / 1000 >= since
            ),
            default=0.0,
        )


def read_all(port: int, path: str, token: str, needle: str) -> Reading:
    """Send a GET request and count what comes."""
    task = {"do": "read", "port": port, "path": path, "token": token}
    return Reading(**_ask({**task, "needle": needle}))


def burst(port: int, paths: Sequence[str], token: str) -> Burst:
    """Send many GET requests at the same moment, each over its own connection."""
    task = {"do": "burst", "port": port, "paths": list(paths), "token": token}
    return Burst(**_ask(task))


class Watch:
    """What a process takes while the context is open, and how soon it answers."""

    def __init__(
        self, pid: int, port: int, pause_s: float = _HEALTH_PAUSE_S, idle_s: float = 0
    ) -> None:
        """Say which, how often `/health` is polled, and for how long only that is."""
        self._port, self._pause_s, self._idle_s = port, pause_s, idle_s
        self.health: Health
        self.growth_mib = 0.0
        self.cpu_s = 0.0
        self.descriptors = self.threads = 0
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample)

    def __enter__(self) -> "Watch":
        """Begin to poll, and then to count."""
        self.health = Health(self._port, self._pause_s)
        time.sleep(self._idle_s)
        self._before = self._process.memory_info().rss
        self._cpu_s = cpu_s(self._process.pid)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop counting, and polling."""
        self._over.set()
        self._sampler.join()
        self.cpu_s = cpu_s(self._process.pid) - self._cpu_s
        self.health.stop()

    def worst(self, started: float, ended: float) -> tuple[float, float, float]:
        """Return the worst latency idle and busy, in ms, and the growth in MiB."""
        return (
            self.health.worst_ms(started - self._idle_s, started - 0.001),
            self.health.worst_ms(started, ended),
            self.growth_mib,
        )

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLED_EVERY_S):
            with self._process.oneshot():
                grown = self._process.memory_info().rss - self._before
                self.growth_mib = max(self.growth_mib, grown / 2**20)
                self.descriptors = max(self.descriptors, self._process.num_fds())
                self.threads = max(self.threads, self._process.num_threads())


def watch_of(synapse: "SynapseServer", pause_s: float = _HEALTH_PAUSE_S) -> Watch:
    """Return what watches the main process of a homeserver."""
    pid = synapse.process("main").pid
    return Watch(pid, synapse.layout.client_ports["main"], pause_s)


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has had."""
    return float(sum(psutil.Process(pid).cpu_times()[:2]))


def _child(task: Json) -> "subprocess.Popen[str]":
    child = subprocess.Popen(  # noqa: S603
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    # Through the pipe rather than as an argument: `ps` shows those to everybody.
    child.stdin.write(json.dumps(task) + "\n")
    child.stdin.flush()
    return child


def _ask(task: Json) -> Json:
    out, _ = _child(task).communicate()
    answer: Json = json.loads(out)
    return answer


# The child's side.


def _main() -> None:
    task: Json = json.loads(sys.stdin.readline())
    if task["do"] == "health":
        _poll_health(task["port"], task["pause_s"])
    elif task["do"] == "read":
        print(json.dumps(_read(task)))
    else:
        print(json.dumps(asyncio.run(_burst(task))))


def _poll_health(port: int, pause_s: float) -> None:
    # Else the time for which this process waits for a core counts as the server's.
    with suppress(OSError):
        os.nice(-10)
    samples: list[tuple[float, float]] = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    # Before anybody else does: of more than 50 at once, which is how many a listener of
    # Synapse's takes, the kernel has the others wait for a second.
    connection.connect()
    print("started", flush=True)
    while not select.select([sys.stdin], [], [], pause_s)[0]:
        start = time.monotonic()
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            connection.close()
        samples.append((start, (time.monotonic() - start) * 1000))
    print(json.dumps(samples))


def _read(task: Json) -> Json:
    needle = task["needle"].encode()
    connection = http.client.HTTPConnection(
        "127.0.0.1", task["port"], timeout=_TIMEOUT_S
    )
    buffer = bytearray(1 << 16)
    tail = b""
    size = rows = status = 0
    error = ""
    started = time.monotonic()
    try:
        connection.request("GET", task["path"], headers=_headers(task["token"]))
        response = connection.getresponse()
        status = response.status
        while count := response.readinto(buffer):
            size += count
            piece = tail + buffer[:count]
            rows += piece.count(needle)
            tail = bytes(piece[-(len(needle) - 1) :]) if len(needle) > 1 else b""
        if response.length:
            error = f"{response.length} bytes are missing"
    except (OSError, http.client.HTTPException) as e:
        error = repr(e)
    ended = time.monotonic()
    return {
        "status": status,
        "started": started,
        "ended": ended,
        "size": size,
        "rows": rows,
        "error": error,
    }


async def _burst(task: Json) -> Json:
    headers = "".join(f"{k}: {v}\r\n" for k, v in _headers(task["token"]).items())

    async def ask(path: str) -> str:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", task["port"])
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                f"{headers}\r\n".encode()
            )
            answer = await asyncio.wait_for(reader.read(), _TIMEOUT_S)
            writer.close()
            return answer.split(b" ", 2)[1].decode()
        except (OSError, asyncio.TimeoutError, IndexError):
            return "no answer"

    started = time.monotonic()
    answers = await asyncio.gather(*(ask(path) for path in task["paths"]))
    ended = time.monotonic()
    return {
        "started": started,
        "ended": ended,
        "statuses": {key: answers.count(key) for key in sorted(set(answers))},
    }


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


if __name__ == "__main__":
    _main()
