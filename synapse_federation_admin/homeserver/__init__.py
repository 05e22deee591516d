# SPDX-License-Identifier: Apache-2.0
"""The one room that touches what Synapse keeps private.

Everything else in this package reaches Synapse through `synapse.module_api` or through
this room, so that a Synapse upgrade is a review of it. In the order in which to read:

    relied_on, selfcheck, features: what Synapse may change; whether it is there; what
        is off without it
    process, database, background, homeserver: what the rest of the package calls, one
        class to which each file adds
    admin_resource, responses: where requests of admins come in, and what is answered
    sessions, metrics: signing in and out; numbers
    retry_timings, transactions, traffic: what Synapse knows of destinations, what it
        sends to them, and what comes of its requests
    network, federation, outbound: requests of our own, one class on the other: how they
        connect; which there are; what only a diagnosis asks
    attempt: one request, and what it meets. It is made of bounded_reactor, lookups,
        tls_policy, delegation and agents
    errors, relay: what it raises; how another process of the homeserver is told of that
    server_name, newest: names, and what is kept in memory
"""
