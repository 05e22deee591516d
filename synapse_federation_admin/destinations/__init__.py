# SPDX-License-Identifier: Apache-2.0
"""Reading what Synapse knows of its destinations.

In the order in which to read:

    values, query, store: a destination, and statements; one of them, and its rooms
    order, invalid, indexes, reader, pagination: lists; pages of v1
    backlog, senders, queued: what waits, who sends it, and what has not come so far
    shared_rooms, attention, waiting: who is affected; where most are, or most waits
    costly, summary: what takes long is read once for all; all in a few numbers
"""
