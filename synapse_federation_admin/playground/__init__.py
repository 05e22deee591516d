# SPDX-License-Identifier: Apache-2.0
"""A real Synapse with this module, and remote servers that misbehave.

The command `playground` and the end-to-end tests stand on the same classes:

    processes      child processes that end with us, free ports, waiting
    certificates   an authority of our own, good and bad certificates
    services       PostgreSQL and Redis
    synapse        SynapseServer, one process or several (configuration: its files)
    remote         RemoteServer (records: what it saw; remote_http: what it answers;
                   events: what it signs)
    client         the client and the admin API
    names          host names that only this Synapse knows
    population     thirty servers, and the people and rooms that they share
    world          Playground: all of it together
    check          the main job
    session        one run of the command (display, control: what a person sees, does)
"""
