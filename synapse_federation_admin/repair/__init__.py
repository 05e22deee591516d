# SPDX-License-Identifier: Apache-2.0
"""Bringing federation with a destination back.

In the order in which to read:

    contact, wake: what proves that a server works; having every process try it
    follow_up: what comes of a destination whose retry timings were cleared
    reset, reconnect: one of them, as v1 and as v2 have it
    runner, criteria: what is done to many of them, and to which
    reconnect_many, forget_many, cap_backoff: that; pace is for the first of these
    forget, flush_caches: one server, in Synapse's tables and in its memory
    housekeeping: what is left of a process that has ended, and what is old
"""
