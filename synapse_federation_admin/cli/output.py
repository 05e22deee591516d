# SPDX-License-Identifier: Apache-2.0
"""Where output goes, and in which shape: data to stdout, everything else to stderr.

What a remote server, or anybody, has chosen is shown and never obeyed: no control
character of it reaches a terminal, and nothing in it is taken for markup.
"""

import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attr
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from synapse_federation_admin.cli.exits import FailedError
from synapse_federation_admin.durations import SECOND_MS, duration
from synapse_federation_admin.failures.bounds import shown

FORMATS = ("human", "json", "yaml", "minified")

DASH = "\u2013"

SIGNS = {"good": "✓", "warn": "!", "bad": "✗", "muted": DASH}
"""The sign that goes with each look, as in the console."""

STYLES = {"good": "green", "warn": "yellow", "bad": "red", "muted": "dim"}

# Nothing is cut or folded where nobody looks: a line of a table is a line.
_UNBOUNDED = 10_000

# What JSON would leave as it is, and a terminal would not.
_UNSEEN = re.compile(
    "[\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


_NOT_ASCII = re.compile("[^\x00-\x7e]")


class Output:
    """Writes answers, and what is to be said beside them.

    Attributes:
        shape: One of `FORMATS`.
        console: That of stdout.
        errors: That of stderr.
    """

    def __init__(self, shape: str) -> None:
        self.shape = shape
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal that has no ✓ is no reason to fail.
            sys.stdout.reconfigure(errors="backslashreplace")
        self.console = _console(sys.stdout)
        self.errors = _console(sys.stderr)

    @property
    def is_human(self) -> bool:
        """Whether a person is to read it."""
        return self.shape == "human"

    @property
    def is_live(self) -> bool:
        """Whether what is shown beside the data may move: never in a pipe."""
        return self.errors.is_terminal and not self.errors.is_dumb_terminal

    def answer(self, answer: Any, human: Callable[[], None]) -> None:
        """Write an answer of the API: as it is, or for people.

        Args:
            answer: What the API has answered.
            human: Writes it for people.
        """
        if self.is_human:
            try:
                human()
            except (AttributeError, KeyError, TypeError, ValueError) as e:
                # A bug, or the answer of another version, which is no reason to fail
                # in a way that nobody understands.
                raise FailedError(
                    "The answer cannot be written for people; it may be that of another"
                    f" version of the module. `-o json` writes it as it is. ({e!r})"
                ) from e
        else:
            sys.stdout.write(serialized(answer, self.shape))
        sys.stdout.flush()

    def answer_list(
        self,
        answer: Mapping[str, Any],
        key: str,
        columns: Iterable["Column"],
        none: str,
    ) -> None:
        """Write a page of a list of the API's.

        Args:
            answer: What the API has answered.
            key: That of the list.
            columns: For people: what is told of each.
            none: Likewise: what is told where it is empty.
        """

        def human() -> None:
            rows = answer.get(key, ())
            if rows:
                self.show(listed(rows, columns, self.console.width))
                self.tell_more(answer, len(rows))
            else:
                self.note(none)

        self.answer(answer, human)

    def show(self, *what: RenderableType, soft: bool = False) -> None:
        """Write something for people to stdout.

        Args:
            what: A text is of anybody.
            soft: Whether lines are as long as they are, to be copied.
        """
        for each in what:
            renderable = plain(each) if isinstance(each, str) else each
            if self.console.is_terminal:
                self.console.print(renderable, soft_wrap=soft)
                continue
            with self.console.capture() as captured:
                self.console.print(renderable, soft_wrap=soft)
            # Who reads it with a program wants no spaces that fill a table.
            lines = captured.get().split("\n")
            self.console.file.write("\n".join(each.rstrip() for each in lines))

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show that something takes a while, where somebody looks."""
        if not self.is_live:
            yield
            return
        with self.errors.status(plain(f"{text} …")):
            yield

    def tell_more(self, answer: Mapping[str, Any], shown: int) -> None:
        """Say how many are shown, and how to come to the next page, if there is one."""
        if token := answer.get("next_token"):
            self.note(f"There are more than these {shown}: --from {token}", "dim")

    def note(self, text: str, look: str = "") -> None:
        """Say something beside the data, on stderr."""
        self.errors.print(
            plain(text, STYLES.get(look, look)), soft_wrap=not self.is_live
        )


def _console(file: Any) -> Console:
    is_wide = not file.isatty()
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    if is_wide and not os.environ.get("COLUMNS", "").isdigit():
        console.width = _UNBOUNDED
    return console


def serialized(answer: Any, shape: str) -> str:
    """Return an answer as JSON on many lines or on one, or as YAML."""
    if shape == "yaml":
        import yaml

        text = json.dumps(answer, ensure_ascii=False)
        found: str = yaml.safe_dump(
            answer,
            allow_unicode=escaped(text) == text,
            sort_keys=False,
            default_flow_style=False,
            width=_UNBOUNDED,
        )
        return found
    if shape == "minified":
        text = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
    else:
        text = json.dumps(answer, ensure_ascii=False, indent=2)
    return f"{escaped(text)}\n"


def escaped(text: str) -> str:
    r"""Return JSON in which what is not seen, or turns what follows, is escaped.

    So is what stdout's encoding may not have. Such characters stand in strings only,
    where it is the same with `\u`.
    """
    is_all = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    these = _UNSEEN if is_all else _NOT_ASCII
    return these.sub(lambda found: json.dumps(found[0])[1:-1], text)


def plain(text: object, style: str = "") -> Text:
    """Return a text of anybody: its control characters are shown."""
    return Text(shown(str(text)), style)


def line(text: object, style: str = "") -> Text:
    """Likewise, on one line."""
    return plain(str(text).replace("\t", " ").replace("\n", " "), style)


def pill(look: str, word: str) -> Text:
    """Return a word with its sign."""
    return Text.assemble(
        (f"{SIGNS.get(look, '?')} {shown(word)}", STYLES.get(look, ""))
    )


def table(*heads: str) -> Table:
    """Return a table without lines; a head that begins with `>` is of numbers."""
    made = Table(
        box=None,
        pad_edge=False,
        header_style="dim",
        padding=(0, 2, 0, 0),
    )
    for head in heads:
        is_number = head.startswith(">")
        made.add_column(
            head.removeprefix(">"),
            justify="right" if is_number else "left",
            no_wrap=is_number,
            overflow="fold",
        )
    return made


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Column:
    """A column of a table of what the API lists.

    Attributes:
        head: Its head; of numbers, with a `>` before it.
        cell: Writes it of one of the list; a text is of anybody.
        from_width: How wide a terminal has to be to show it.
        is_name: Whether it is of the names of servers: they are folded last, but for
            endless ones.
        is_whole: Whether it is never folded.
    """

    head: str
    cell: Callable[[Any], RenderableType]
    from_width: int = 0
    is_name: bool = False
    is_whole: bool = False


def listed(rows: Iterable[Any], columns: Iterable[Column], width: int) -> Table:
    """Return a table of what the API lists.

    Args:
        rows: The list.
        columns: What is told of each, where there is room for it.
        width: That of the terminal.
    """
    told = [column for column in columns if width >= column.from_width]
    made = table(*(column.head for column in told))
    for row in rows:
        cells = (column.cell(row) for column in told)
        made.add_row(*(line(each) if isinstance(each, str) else each for each in cells))
    for column, its in zip(told, made.columns, strict=True):
        its.no_wrap |= column.is_whole
        if column.is_name:
            # A width of its own, for what is only a least one makes a table wider than
            # there is room for, of which the end is then cut.
            longest = max(map(len, (column.head, *map(str, its.cells))))
            its.width = min(longest, width * 2 // 5)
    return made


def user(user_id: Any, is_wide: bool) -> Text:
    """Return a user ID, without the server where there is little room."""
    told = str(user_id or "")
    return line(told if is_wide else told.partition(":")[0])


def grid(rows: Iterable[tuple[RenderableType, ...]]) -> Table:
    """Return a table without a head: what, and how much."""
    made = Table.grid(padding=(0, 2, 0, 0))
    is_empty = True
    for row in rows:
        if is_empty:
            made.add_column(width=0)
            for number in range(len(row)):
                made.add_column(overflow="fold", no_wrap=number == 0 < len(row) - 1)
            is_empty = False
        made.add_row(
            "", *(plain(each) if isinstance(each, str) else each for each in row)
        )
    return made


def now_ms() -> int:
    """Return the time in ms since the epoch."""
    return int(time.time() * 1000)


def ago(ts: Any, never: str = "never") -> str:
    """Return how long ago a time was."""
    return f"{since(ts)} ago" if isinstance(ts, int) and ts else never


def since(ts: Any) -> str:
    """Return for how long something is so."""
    return duration(max(now_ms() - ts, SECOND_MS)) if isinstance(ts, int) else "?"


def until(ts: Any) -> str:
    """Return in what time something will be."""
    if not isinstance(ts, int):
        return DASH
    left = ts - now_ms()
    return f"in {duration(left)}" if left >= SECOND_MS else "now"
