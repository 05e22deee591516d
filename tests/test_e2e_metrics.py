# SPDX-License-Identifier: Apache-2.0
"""What a real Synapse exports is what the documents, alerts and dashboard go by."""

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Set
from contextlib import ExitStack
from pathlib import Path

import httpx
import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from real_synapse import RealSynapse
from shifted_clock import ShiftedClock

from synapse_federation_admin.failures.kinds import FAILURE_KINDS, UNKNOWN_KIND
from synapse_federation_admin.playground.client import NO_AUTHORITIES
from synapse_federation_admin.playground.processes import free_port, wait_until
from synapse_federation_admin.playground.remote import Behaviour, RemoteServer

pytestmark = [pytest.mark.e2e, pytest.mark.one_synapse]

DOCS = Path(__file__).parent.parent / "docs"
PREFIX = "synapse_federation_admin_"

REMOTES = (
    *(Behaviour.DOWN, Behaviour.DOWN, Behaviour.EXPIRED_CERTIFICATE),
    *(Behaviour.BAD_GATEWAY, Behaviour.HEALTHY),
)

# What Prometheus itself adds to every series.
SCRAPED = frozenset({"job", "instance"})

# Aggregations that keep series as they are.
KEEPING = ("topk", "bottomk", "limitk", "limit_ratio")


class Scrape:
    """What a process has exported: by name, labels and values."""

    def __init__(self, synapse: RealSynapse, port: int) -> None:
        url = f"http://127.0.0.1:{port}/_synapse/metrics"
        text = (
            httpx.get(url, trust_env=False, verify=NO_AUTHORITIES)
            .raise_for_status()
            .text
        )
        self.server_name = synapse.server_name
        self.samples: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples[sample.name].append((sample.labels, sample.value))

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of one of the module's series; None if it is not there."""
        labels["server_name"] = self.server_name
        found = self.samples.get(PREFIX + name, [])
        return next((value for having, value in found if having == labels), None)

    def series(self, name: str) -> list[dict[str, str]]:
        """Return the labels of each series of a metric."""
        assert name in self.samples, f"there is no {name}"
        return [labels for labels, _ in self.samples[name]]

    def ours(self) -> set[str]:
        return {name for name in self.samples if name.startswith(PREFIX)}


@pytest.fixture(scope="module")
def scrape(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scrape]:
    """A Synapse whose requests failed, with a reset, a reconnect and diagnoses."""
    folder = tmp_path_factory.mktemp("metrics")
    clock = ShiftedClock(folder / "clock", time.time())
    port = free_port()
    with ExitStack() as stack:
        synapse = stack.enter_context(
            RealSynapse(
                folder,
                extra_config={"enable_metrics": True},
                extra_listeners=[
                    {"type": "metrics", "port": port, "bind_addresses": ["127.0.0.1"]}
                ],
                wrapper=clock.wrapper,
            )
        )
        remotes = []
        for number, behaviour in enumerate(REMOTES):
            remote = RemoteServer(f"127.0.0.{150 + number}", synapse.certificates)
            remotes.append(stack.enter_context(remote))
            remote.switch(behaviour)
        client = synapse.as_admin()
        for remote in remotes:
            client.send_to_device(f"@user:{remote.server_name}", "hello")
        failing = len(remotes) - 1
        wait_until(
            lambda: client.destinations()["total"] >= failing, "them to fail", 90
        )
        for remote in remotes:
            client.diagnose(remote.server_name)
        client.reconnect(remotes[0].server_name)
        reset_ts = clock.now_ms
        client.reset_connection(remotes[1].server_name)

        def is_recorded() -> bool:
            failure = client.detail(remotes[1].server_name)["last_failure"]
            return failure is not None and failure["last_ts"] >= reset_ts

        wait_until(is_recorded, "the one that was reset to fail again", 90)
        wait_until(
            lambda: client.audit(action="reset")[0]["outcome"] != "pending",
            "what comes of the reset to be known",
            90,
        )
        # The gauges are brought up to date once in two minutes, the backlog less often:
        # it may be older than a failure. And a jump of the clock can end its reading.
        for jump_s in (200, 125, 125, 125):
            clock.jump(jump_s)
            settled_s = clock.now_ms / 1000 - 30
            scrape = wait_until(
                lambda settled_s=settled_s: updated(Scrape(synapse, port), settled_s),
                "the gauges to be brought up to date",
                90,
            )
            stuck_s = scrape.value("oldest_stuck_to_device_age_seconds")
            waiting = scrape.value("backlog", queue="to_device_messages")
            if (waiting, stuck_s) == (failing, 0):
                break
        yield scrape


def updated(scrape: Scrape, since_s: float) -> Scrape | None:
    updated_s = scrape.value("updated_timestamp_seconds") or 0
    return scrape if updated_s > since_s else None


def test_values(scrape: Scrape) -> None:
    """The metrics show what has really happened."""
    assert scrape.value("destinations", status="backing_off") == 4
    for kind, count in (
        *(("connection_refused", 2), ("tls_expired", 1), ("http_error", 1)),
        *(("dns_failed", 0), (UNKNOWN_KIND, 0)),
    ):
        assert scrape.value("failing_destinations", kind=kind) == count
        if kind != UNKNOWN_KIND:
            assert (scrape.value("failures_total", kind=kind) or 0) >= count
    assert scrape.value("tried_destinations", outcome="failed") == 4
    assert scrape.value("tried_destinations", outcome="succeeded") == 1
    assert scrape.value("outlook", verdict="normal") == 1
    assert scrape.value("outlook", verdict="us") == 0
    assert scrape.value("backlog", queue="to_device_messages") == 4
    # In seconds, after all jumps of the clock.
    assert 5 < (scrape.value("oldest_to_device_age_seconds") or 0) < 3600
    # All of them wait for servers that fail.
    assert scrape.value("oldest_stuck_to_device_age_seconds") == 0
    for action in ("reset", "reconnect"):
        outcome = "still_failing"
        assert scrape.value("repairs_total", action=action, outcome=outcome) == 1
    assert scrape.value("diagnoses_total", verdict="ok", kind="") == 1
    kind = "connection_refused"
    assert scrape.value("diagnoses_total", verdict="failing", kind=kind) == 2
    # What the alert on work in the database goes by is Synapse's own.
    times = scrape.series("synapse_storage_transaction_time_sum_total")
    assert "federation_admin_record" in {labels["desc"] for labels in times}


def documented() -> dict[str, dict[str, set[str]]]:
    """Read docs/metrics.md: each metric, its labels, and what values they may have."""
    text = (DOCS / "metrics.md").read_text()
    rows = re.findall(rf"^\| `({PREFIX}\w+)` \| ([^|]*)\|", text, re.MULTILINE)
    found: dict[str, dict[str, set[str]]] = {}
    for name, cell in rows:
        labels: dict[str, set[str]] = {}
        for part in cell.split(";"):
            label, _, values = part.partition(":")
            for each in re.findall(r"`(\w+)`", label):
                labels[each] = set(re.findall(r"`(\w+)`", values))
                if "[kinds]" in values:
                    labels[each] |= {k for k in FAILURE_KINDS if k != UNKNOWN_KIND}
                if "empty" in values:
                    labels[each].add("")
        found[name] = labels
    return found


def documented_repairs() -> set[tuple[str, str]]:
    text = (DOCS / "metrics.md").read_text()
    table = text.partition("| `action` | `outcome` |\n")[2].partition("\n\n")[0]
    return {
        (row[0], outcome)
        for line in table.splitlines()[1:]
        if (row := re.findall(r"`(\w+)`", line))
        for outcome in row[1:]
    }


def test_documented(scrape: Scrape) -> None:
    """docs/metrics.md has every metric with its labels and values, and no others.

    So none has the name of a destination.
    """
    exported = scrape.ours()
    tables = documented()
    assert exported == set(tables)
    # Wherever one is named.
    named = re.findall(rf"{PREFIX}\w+", (DOCS / "metrics.md").read_text())
    assert set(named) == exported

    for name, labels in tables.items():
        found = scrape.series(name)
        for series in found:
            assert set(series) == {*labels, "server_name"}, name
        for label, values in labels.items():
            seen = {series[label] for series in found}
            if name == f"{PREFIX}diagnoses_total":
                # What there has not been is not there.
                assert seen <= values
            elif label == "sender":
                # Some, as examples.
                assert values <= seen
            elif name != f"{PREFIX}repairs_total":
                assert seen == values, (name, label)

    repairs = scrape.series(f"{PREFIX}repairs_total")
    assert documented_repairs() == {(r["action"], r["outcome"]) for r in repairs}


# -- expressions ---------------------------------------------------------------------


def check(expr: promql.Expr, scrape: Scrape) -> Set[str] | None:
    """Assert that an expression goes by what is exported.

    Returns:
        Which labels its result has; None if it is a scalar.
    """
    if isinstance(expr, promql.VectorSelector):
        return check_selector(expr, scrape)
    if isinstance(expr, promql.MatrixSelector):
        return check_selector(expr.vector_selector, scrape)
    if isinstance(expr, promql.ParenExpr | promql.UnaryExpr | promql.SubqueryExpr):
        return check(expr.expr, scrape)
    if isinstance(expr, promql.NumberLiteral | promql.StringLiteral):
        return None
    if isinstance(expr, promql.Call):
        results = [check(argument, scrape) for argument in expr.args]
        return next((labels for labels in results if labels is not None), None)
    if isinstance(expr, promql.AggregateExpr):
        return check_aggregation(expr, scrape)
    assert isinstance(expr, promql.BinaryExpr), type(expr)
    left, right = check(expr.lhs, scrape), check(expr.rhs, scrape)
    if left is None or right is None:
        return right if left is None else left
    # Else no series of one side ever meets one of the other.
    assert expr.modifier is None or expr.modifier.matching is None, "not used so far"
    assert left == right, expr.prettify()
    return left


def check_selector(selector: promql.VectorSelector, scrape: Scrape) -> Set[str]:
    assert not selector.matchers.or_matchers
    series = scrape.series(selector.name)
    wanted = {m.name: m.value for m in selector.matchers.matchers}
    for label, value in wanted.items():
        for choice in value.split("|"):
            assert any(re.fullmatch(choice, each[label]) for each in series), label
    assert any(
        all(re.fullmatch(value, each[label]) for label, value in wanted.items())
        for each in series
    ), selector.prettify()
    return frozenset().union(*series) | SCRAPED


def check_aggregation(expr: promql.AggregateExpr, scrape: Scrape) -> Set[str]:
    labels = check(expr.expr, scrape)
    assert labels is not None
    by = expr.modifier
    assert by is None or by.type == promql.AggModifierType.By, "not used so far"
    kept = frozenset(by.labels if by else ())
    assert kept <= labels, f"{expr.prettify()}: there is no {kept - labels}"
    return labels if str(expr.op) in KEEPING else kept


def check_text(text: str, scrape: Scrape) -> Set[str] | None:
    return check(promql.parse(text), scrape)


def test_alerts(scrape: Scrape) -> None:
    """Each alert goes by metrics, labels and values that are exported, and tells them.

    What no alert can ever go by would be found by nobody: it would just never fire.
    """
    (group,) = yaml.safe_load((DOCS / "alerts.yaml").read_text())["groups"]
    assert len(group["rules"]) >= 10
    for rule in group["rules"]:
        labels = check_text(rule["expr"], scrape)
        assert labels is not None
        for text in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels, rule["alert"]
        assert "$labels.server_name" in rule["annotations"]["summary"]


def test_dashboard(scrape: Scrape) -> None:
    """Each panel and variable goes by what is exported, and every metric is shown."""
    whole = (DOCS / "grafana-dashboard.json").read_text()
    assert {name for name in scrape.ours() if name not in whole} == set()
    dashboard = json.loads(whole)
    source, *variables = dashboard["templating"]["list"]
    assert (source["name"], source["type"]) == ("datasource", "datasource")
    known = {"$__rate_interval": "5m"}
    for variable in variables:
        assert variable["datasource"]["uid"] == "${datasource}"
        query = variable["query"]["query"]
        assert query == variable["definition"]
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert match is not None, query
        labels = check_text(match[1], scrape)
        assert labels is not None
        assert match[2] in labels
        known[f"${variable['name']}"] = scrape.server_name

    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len(panels) >= 15
    for panel in panels:
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            text = target["expr"]
            for name, value in known.items():
                text = text.replace(name, value)
            assert "$" not in text
            labels = check_text(text, scrape)
            assert labels is not None
            legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert legend <= labels, panel["title"]


def test_documented_queries(scrape: Scrape) -> None:
    """The queries of docs/metrics.md go by what is exported."""
    text = (DOCS / "metrics.md").read_text()
    queries = re.findall(r"^```promql\n(.+?)^```$", text, re.MULTILINE | re.DOTALL)
    assert queries
    for query in queries:
        assert check_text(query, scrape) is not None
