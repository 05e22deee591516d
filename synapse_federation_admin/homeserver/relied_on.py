# SPDX-License-Identifier: Apache-2.0
"""All that this module relies on and Synapse may change without saying so.

`selfcheck` looks for it at start: it imports the files of this room, and goes the paths
of attributes that are here. A test fails if this room uses a private name that is not
here; hiding any of them switches off no more than the features beside it.
"""

from collections.abc import Collection, Mapping

from synapse_federation_admin.homeserver.features import Feature

_F = Feature

_LISTS = (_F.V1_LISTS, _F.LISTS)
_CONTACTS = (_F.V1_RESET, _F.RECONNECT, _F.RUNS)
_CLASSIFIES = (*_CONTACTS, _F.DIAGNOSIS, _F.HISTORY)

# What needs which files of this room: all that they import of Synapse has to be there.
FILES: tuple[tuple[Collection[Feature], str], ...] = (
    ((_F.MOUNT,), "admin_resource"),
    ((_F.BASE,), "homeserver"),
    (_LISTS, "responses"),
    (_CLASSIFIES, "errors"),
    ((*_CONTACTS, _F.DIAGNOSIS), "federation"),
    ((*_CONTACTS, _F.HISTORY), "retry_timings"),
    ((*_CONTACTS, _F.DIAGNOSIS), "transactions"),
    ((_F.FLUSH_CACHES,), "retry_timings"),
    ((_F.DIAGNOSIS,), "outbound"),
    ((_F.HISTORY,), "traffic"),
    ((_F.CONSOLE,), "responses sessions"),
)

# What needs which other names: behind a module or `hs`, the homeserver object, those
# that are in it. A name is a path of attributes: `get_clock()` is called, `f(a)` is a
# function that has a parameter, or uses a name, `a`, and `f(*a b)` one that can be
# called with these arguments and no others.
NAMES: tuple[tuple[Collection[Feature], str], ...] = (
    (
        (_F.MOUNT,),
        """
        synapse.http.site: SynapseSite.site_tag SynapseRequest.synapse_site
        synapse.config.server:
            HttpListenerConfig.resources HttpResourceConfig(names)
            UnixListenerConfig.path TCPListenerConfig.http_options
            TCPListenerConfig.port TCPListenerConfig.bind_addresses
            TCPListenerConfig.get_site_tag
        hs:
            config.worker.worker_app config.worker.worker_listeners
            config.server.listeners config.media.can_load_media_repo
        """,
    ),
    (
        (_F.BASE,),
        """
        synapse.metrics: SERVER_NAME_LABEL
        synapse.rest.admin._base: assert_user_is_admin(*auth requester)
        synapse.storage.database:
            LoggingTransaction.after_callbacks LoggingTransaction.async_after_callbacks
            LoggingTransaction.exception_callbacks LoggingTransaction.database_engine
            LoggingTransaction.call_after LoggingTransaction.execute_batch
        synapse.storage.engines._base: IsolationLevel.READ_COMMITTED
        synapse.util.async_helpers: Linearizer.queue
        hs:
            hostname get_instance_name get_clock().time_msec
            get_reactor().addSystemEventTrigger get_reactor().seconds
            get_auth().get_user_by_req(*request) run_as_background_process(*desc func)
            config.redis.redis_enabled config.worker.instance_map
            get_datastores().main.database_engine.module.DatabaseError
            get_datastores().main.database_engine.module.InterfaceError
            get_datastores().main.database_engine.module.OperationalError
            get_datastores().main.db_pool.runInteraction(*
                desc func isolation_level db_autocommit)
        """,
    ),
    (
        (_F.CONSOLE,),
        """
        synapse.api.ratelimiting:
            Ratelimiter(*store clock cfg)
            Ratelimiter.ratelimit(*self requester key rate_hz burst_count)
        synapse.http.client:
            SimpleHttpClient.request(*self method uri data headers)
            read_body_with_max_size(*response stream max_size)
        synapse.http.server: DirectServeHtmlResource._async_render
        synapse.rest.client.login:
            LoginRestServlet(*hs) LoginRestServlet.on_GET(*self request)
            LoginRestServlet.on_POST(*self request)
        synapse.rest.client.logout:
            LogoutRestServlet(*hs) LogoutRestServlet.on_POST(*self request)
        hs:
            config.key.macaroon_secret_key config.ratelimiting.rc_login_address
            get_clock get_reactor get_auth get_proxied_http_client
        """,
    ),
    (
        (*_LISTS, _F.CONSOLE),
        "synapse.http.server: finish_request(*request) set_cors_headers(*request)",
    ),
    (
        # Synapse's own servlets, where ours cannot answer.
        (),
        """
        synapse.http.site: SynapseRequest._requester
        synapse.rest.admin.federation:
            DestinationMembershipRestServlet DestinationResetConnectionRestServlet
            DestinationRestServlet ListDestinationsRestServlet
        """,
    ),
    (
        (_F.LISTS, _F.RECONNECT, _F.RUNS, _F.DIAGNOSIS),
        "hs: config.federation.is_domain_allowed_according_to_federation_whitelist",
    ),
    (
        (_F.LISTS, _F.SENDERS, *_CONTACTS),
        """
        hs:
            config.worker.federation_shard_config.instances
            config.worker.federation_shard_config.should_handle
        """,
    ),
    (
        _CONTACTS,
        """
        synapse.federation.units:
            Transaction.pdus Transaction.edus
        synapse.notifier: Notifier.notify_remote_server_up(*self server)
        synapse.replication.tcp.handler:
            ReplicationCommandHandler.connected
            ReplicationCommandHandler.send_remote_server_up(*self server)
        hs:
            get_notifier get_replication_command_handler
            get_datastores().main._invalidate_cache_and_stream_bulk(*
                txn cache_func key_tuples)
            get_datastores().main._set_destination_retry_timings_txn(*
                txn destination failure_ts retry_last_ts retry_interval)
        """,
    ),
    (
        (_F.V1_RESET,),
        """
        synapse.util.retryutils:
            get_retry_limiter(*
                destination our_server_name hs clock store ignore_backoff
                notifier replication_client backoff_on_all_error_codes)
            RetryDestinationLimiter(notifier)
            RetryDestinationLimiter(replication_client)
            RetryDestinationLimiter(backoff_on_all_error_codes)
            RetryDestinationLimiter.__exit__(backoff_on_failure)
        """,
    ),
    (
        (*_CONTACTS, _F.DIAGNOSIS),
        """
        hs: signing_key
        synapse.config.server:
            ProxyConfig.https_proxy ProxyConfig.get_proxies_dictionary
        synapse.crypto.context_factory:
            ConnectionVerifier.verify_context_info_cb ConnectionVerifier._verify_certs
            FederationPolicyForHTTPS.get_options
            FederationPolicyForHTTPS._verify_ssl_context
            SSLClientConnectionCreator._verifier
            SSLClientConnectionCreator.clientConnectionForTLS(_synapse_tls_verifier)
        synapse.federation.units: Transaction.destination
        synapse.http.client:
            BlocklistingAgentWrapper(*agent ip_blocklist)
            BlocklistingReactorWrapper(*reactor ip_allowlist ip_blocklist)
        synapse.http.federation.matrix_federation_agent:
            MatrixFederationAgent._agent
            MatrixFederationAgent(*
                reactor tls_client_options_factory ip_allowlist ip_blocklist
                proxy_config _srv_resolver _well_known_resolver
                server_name clock user_agent)
            MatrixHostnameEndpoint(parsed_uri)
            MatrixHostnameEndpointFactory._proxy_reactor
        synapse.http.federation.srv_resolver:
            Server.host SrvResolver.resolve_service SrvResolver(dns_client)
        synapse.http.federation.well_known_resolver:
            WellKnownResolver(*
                agent well_known_cache had_well_known_cache reactor
                server_name clock user_agent)
            WellKnownLookupResult.delegated_server
            WellKnownResolver._make_well_known_request(*self server_name retry)
            WellKnownResolver.get_well_known(*self server_name)
        synapse.http.matrixfederationclient:
            MatrixFederationHttpClient.get_json_with_headers(*
                self destination path timeout ignore_backoff)
            MatrixFederationHttpClient.put_json(*
                self destination path data timeout ignore_backoff)
        synapse.http.proxyagent:
            ProxyAgent(*reactor proxy_reactor pool contextFactory proxy_config)
        synapse.util.gai_resolver: HostResolution(*name)
        twisted.protocols.tls: TLSMemoryBIOProtocol.failVerification
        hs:
            version_string get_reactor().nameResolver
            config.server.federation_ip_range_allowlist
            config.server.federation_ip_range_blocklist config.server.proxy_config
            config.server.user_agent_suffix
            config.worker.outbound_federation_restricted_to.instances
            get_federation_transport_client().send_transaction
            get_federation_http_client().agent._agent._pool.persistent
            get_federation_http_client().agent.request
            get_federation_http_client()._store
            get_federation_http_client()._send_request
        """,
    ),
    (
        (_F.DIAGNOSIS,),
        """
        synapse.http.client: read_body_with_max_size(*response stream max_size)
        synapse.http.connectproxyclient:
            HTTPConnectProxyEndpoint(*reactor proxy_endpoint host port proxy_creds)
        synapse.http.federation.well_known_resolver:
            WellKnownResolver._well_known_cache
            _cache_period_from_headers(*headers time_now)
        synapse.http.proxyagent:
            http_proxy_endpoint(*proxy reactor tls_options_factory)
        twisted.internet.endpoints: HostnameEndpoint._badHostname
        hs:
            get_clock().time get_reactor().getThreadPool
        """,
    ),
    (
        (_F.FLUSH_CACHES,),
        """
        synapse.http.federation.srv_resolver: SERVER_CACHE
        synapse.util.stringutils: parse_server_name
        synapse.http.federation.well_known_resolver:
            WellKnownResolver._well_known_cache
            WellKnownResolver._had_valid_well_known_cache
        hs:
            get_federation_http_client
            get_datastores().main._invalidate_cache_and_stream_bulk(*
                txn cache_func key_tuples)
            get_datastores().main.get_destination_retry_timings
        """,
    ),
    (
        (_F.HISTORY,),
        """
        synapse.logging.context:
            ContextRequest.url LoggingContext.server_name
        synapse.storage.databases.main.transactions:
            DestinationRetryTimings.failure_ts
        hs: register_sync_shutdown_handler(*phase eventType shutdown_func)
        """,
    ),
    (
        _CLASSIFIES,
        """
        synapse.api.errors:
            HttpResponseException.code HttpResponseException.response
            RequestSendFailed.inner_exception
            RequestSendFailed(*inner_exception can_retry)
        hs: config.worker.worker_replication_secret
        """,
    ),
    (
        # Also where Synapse's client asks a store of ours.
        _CLASSIFIES,
        "hs: get_datastores().main.get_destination_retry_timings",
    ),
    (
        (_F.SENDERS,),
        """
        synapse.events: EventBase.origin_server_ts
        synapse.federation.sender: FederationSender._per_destination_queues
        synapse.federation.sender.per_destination_queue:
            PerDestinationQueue._pending_pdus PerDestinationQueue.pending_edu_count
            PerDestinationQueue.transmission_loop_running
        hs:
            should_send_federation get_federation_sender
            get_datastores().main.get_room_max_stream_ordering
        """,
    ),
    (
        # Who uses them can do without. Where this process does not go out to other
        # servers itself, they are not there either.
        (),
        """
        synapse.api.auth.mas: MasDelegatedAuth.auth_metadata
        synapse.federation.sender:
            FederationSender._last_poked_id FederationSender.notify_new_events
        synapse.http.federation.well_known_resolver:
            WellKnownResolver._had_valid_well_known_cache
            WellKnownResolver._well_known_agent
        synapse.types: RoomStreamToken.stream
        synapse.util.gai_resolver: GAIResolver._getThreadPool
        hs:
            _module_web_resources get_datastores().main.get_room_max_token
            get_federation_http_client().agent._agent._agent._endpointFactory
            get_federation_http_client().agent._agent._pool
            get_federation_http_client().agent._agent._well_known_resolver
        """,
    ),
)

# Those of them that are functions and are awaited; all others are only called.
AWAITED = """
    _async_render _make_well_known_request _send_request assert_user_is_admin
    auth_metadata get_destination_retry_timings get_json_with_headers get_retry_limiter
    get_user_by_req get_well_known on_POST put_json ratelimit request resolve_service
    runInteraction send_transaction
"""

# What Synapse logs, to the letter; where; and the arguments of it.
FAILED = "Connection to %s was unsuccessful (%s(%s)); backoff now %i"
RECOVERED = "Connection to %s was successful; clearing backoff"
MARKED_UP = "Marking origin %r as up"
ANSWERED = "{%s} [%s] Got response headers: %d %s"

LOG_TEXTS: Mapping[str, tuple[str, str]] = {
    FAILED: (
        "synapse.util.retryutils",
        "self.destination, exc_type, exc_val, self.retry_interval",
    ),
    RECOVERED: ("synapse.util.retryutils", "self.destination"),
    MARKED_UP: ("synapse.federation.transport.server._base", "origin"),
    ANSWERED: (
        "synapse.http.matrixfederationclient",
        "request.txn_id, request.destination, response.code, response_phrase",
    ),
}
LOG_TEXTS_ARE_FOR = (Feature.HISTORY,)

# What needs columns of Synapse's tables, the table, and the columns.
COLUMNS: tuple[tuple[Collection[Feature], str, str], ...] = (
    # Whether a transaction can be run at all.
    ((_F.BASE,), "schema_version", "version"),
    (
        (
            *(*_LISTS, *_CLASSIFIES, _F.FLUSH_CACHES, _F.METRICS, _F.INDEXES),
            # Who needs attention, and who has no row.
            *(_F.SHARED_ROOMS, _F.BACKLOG),
        ),
        "destinations",
        "destination retry_last_ts retry_interval failure_ts "
        "last_successful_stream_ordering",
    ),
    (
        (_F.V1_LISTS, _F.BACKLOG, *_CONTACTS, _F.METRICS),
        "destination_rooms",
        "destination room_id stream_ordering",
    ),
    (
        (_F.BACKLOG, *_CONTACTS, _F.METRICS),
        "device_federation_outbox",
        "destination stream_id queued_ts",
    ),
    (
        (_F.BACKLOG, *_CONTACTS, _F.METRICS),
        "device_lists_outbound_pokes",
        "destination stream_id ts",
    ),
    (
        (_F.SHARED_ROOMS, _F.RUNS),
        "current_state_events",
        "type state_key room_id membership",
    ),
    (
        (_F.SHARED_ROOMS, _F.RUNS),
        "local_current_membership",
        "room_id user_id membership",
    ),
    ((_F.SHARED_ROOMS,), "room_stats_state", "room_id name canonical_alias"),
    ((_F.SHARED_ROOMS,), "room_stats_current", "room_id joined_members"),
    (_CONTACTS, "events", "stream_ordering"),
    ((_F.BACKLOG, _F.METRICS), "events", "stream_ordering received_ts"),
    (
        (_F.SENDERS,),
        "events",
        "stream_ordering received_ts sender room_id outlier rejection_reason",
    ),
    ((_F.SENDERS,), "federation_stream_position", "type instance_name stream_id"),
    ((_F.RUNS,), "scheduled_tasks", "action"),
    ((_F.LISTS, _F.DIAGNOSIS), "received_transactions", "origin ts"),
    ((_F.DIAGNOSIS,), "server_signature_keys", "server_name key_id verify_key"),
)
