# SPDX-License-Identifier: Apache-2.0
"""The exporter's HTTP side: /metrics, in the node's namespace."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from geneve_ebpf.errors import Code, GeneveError
from geneve_ebpf.exporter.collector import NodeCollector
from geneve_ebpf.host import namespaces
from geneve_ebpf.model import NodeSettings

Respond = Callable[..., Any]
CONNECTIONS_MAX = 16  # scrapes and idle ones
BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 10\r\nContent-Length: 0\r\n\r\n"
PAGE = b"<!doctype html><title>geneve-ebpf</title><p>geneve-ebpf: <a href=/metrics>metrics</a>\n"


class _Server(ThreadingMixIn, WSGIServer):
    """One thread a connection, so that a scraper which reads slowly holds up nobody.

    So many at a time: the threads are the service's, which may not have many.
    """

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._free = threading.Semaphore(CONNECTIONS_MAX)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection beside others, or say that they are too many."""
        if not self._free.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.setblocking(False)
                request.send(BUSY)
                request.recv(1 << 16)  # closed on what is unread, the answer would not arrive
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread for it
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In the thread of its own."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class _Server6(_Server):
    """The same at an IPv6 address; at `::` it serves both families."""

    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    """Quiet, and patient for ten seconds."""

    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line each."""


def serve(settings: NodeSettings, *, per_sandbox: bool) -> None:
    """Serve until SIGTERM. Raises NODE_SETUP if the address cannot be listened on."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(settings, per_sandbox=per_sandbox))
    scrape = make_wsgi_app(registry)

    def application(environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            return scrape(environ, respond)  # type: ignore[no-any-return]  # it has no types
        if path == "/":
            respond("200 OK", [("Content-Type", "text/html; charset=utf-8")])
            return [PAGE]
        respond("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"try /metrics\n"]

    host, _, port = settings.metrics_listen.rpartition(":")
    # The socket belongs to the namespace it is made in; the maps and the agent's
    # socket are files and do not care.
    with namespaces.entering(settings.netns):
        try:
            kind = _Server6 if ":" in host else _Server
            server = make_server(host.strip("[]"), int(port), application, kind, _Handler)
        except OSError as error:
            raise GeneveError(
                Code.NODE_SETUP,
                f"cannot serve metrics on {settings.metrics_listen}: {error.strerror}",
                hint="set metrics.listen to a free address and port of the node",
                field="metrics.listen",
            ) from None
    with server:
        server.serve_forever()
