# SPDX-License-Identifier: Apache-2.0
"""Forgetting destinations: how, and what comes of it."""

import attr

from synapse_federation_admin.destinations.values import Destination
from synapse_federation_admin.storage.audit_entry import Actor


@attr.s(slots=True, frozen=True, auto_attribs=True)
class ForgetOptions:
    """How destinations are to be forgotten.

    Attributes:
        actor: Who asks for it.
        dry_run: Tell what would come of it, and change nothing.
        drop_to_device: Delete the to-device messages that wait as well.
        reason: Why, for the audit.
    """

    actor: Actor
    dry_run: bool
    drop_to_device: bool
    reason: str | None


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Waiting:
    """What waits for destinations, in numbers.

    Attributes:
        rooms: Rooms with an event that a destination has not got.
        to_device_messages: To-device messages.
        device_list_updates: Changes of local users' devices.
    """

    rooms: int = 0
    to_device_messages: int = 0
    device_list_updates: int = 0

    def __add__(self, other: "Waiting") -> "Waiting":
        """Return both together."""
        return Waiting(
            self.rooms + other.rooms,
            self.to_device_messages + other.to_device_messages,
            self.device_list_updates + other.device_list_updates,
        )


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Forgotten:
    """What came of a request to forget a destination.

    Attributes:
        destination: What its row said.
        lost: What was waiting, and is or would be gone.
        kept: To-device messages that still wait, or would.
        shared_rooms: Rooms that users of ours share with it.
        refused: Why it is not forgotten; None if it is, or would be.
        changed: Whether it is refused because something came in between.
        forgotten: Whether it is.
    """

    destination: Destination
    lost: Waiting
    kept: int
    shared_rooms: int
    refused: str | None = None
    changed: bool = False
    forgotten: bool = False


@attr.s(slots=True, frozen=True, auto_attribs=True)
class ManyForgotten:
    """What came of a request to forget what a filter keeps.

    Attributes:
        run_id: By what its entries in the audit are found; None after a dry run.
        matched: How many destinations the filter kept.
        forgotten: How many are, or would be, forgotten.
        refused: How many are not.
        lost: What was waiting for those that are forgotten.
        kept: To-device messages that still wait for them.
        sample: Some of those that are, or would be, forgotten.
        refused_sample: Some of those that are not, with the rooms that are shared.
    """

    run_id: str | None = None
    matched: int = 0
    forgotten: int = 0
    refused: int = 0
    lost: Waiting = attr.Factory(Waiting)
    kept: int = 0
    sample: tuple[str, ...] = ()
    refused_sample: tuple[tuple[str, int], ...] = ()
