"""The server: where it listens, who may come in, how many at once."""

from __future__ import annotations

import resource
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from errno import EADDRINUSE
from pathlib import Path
from typing import Any

from attrs import field, frozen, validators

from k8sdatapath.errors import ConfigError, MissingExtraError
from k8sdatapath.flow_source import FlowSource
from k8sdatapath.hubble.agent_events import AgentEvents
from k8sdatapath.hubble.observer import Observer
from k8sdatapath.hubble.peers import Peers
from k8sdatapath.hubble.wire import message, service
from k8sdatapath.resource import Resource

__all__ = ["HubbleServer", "ServerOptions", "TlsFiles"]

_SPARE = 16
"""Threads for short questions, beside those that streams have."""
_CONNECTIONS = 4096
"""At one address; all have half of the descriptors of the process at most, which needs some for itself."""


@frozen(kw_only=True)
class TlsFiles:
    """What a server proves itself with; read anew when they change.

    :ivar clients: certificates of those who sign clients': with them only such clients come in.
    """

    certificate: Path
    key: Path
    clients: Path | None = None


@frozen(kw_only=True)
class ServerOptions:
    """How to serve.

    :ivar listen: ``host:port`` (port 0 is any), ``:port`` for all addresses, or
        ``unix:///path``; the last never has TLS.
    :ivar node: ``cluster/node``, where this is.
    :ivar streams: how many clients are served at once.
    """

    listen: tuple[str, ...] = ("127.0.0.1:4245",)
    tls: TlsFiles | None = None
    node: str = "default/localhost"
    streams: int = field(default=256, validator=[validators.ge(1), validators.le(4096)])


class HubbleServer(Resource):
    """Serves flows in Hubble's protocol until it is closed.

    :ivar addresses: where it listens, with the ports it got.
    :raises MissingExtraError: the extra is not installed.
    :raises ConfigError: an address or a file that cannot be used.
    """

    def __init__(
        self,
        source: FlowSource,
        options: ServerOptions | None = None,
        *,
        events: AgentEvents | None = None,
        peers: Peers | None = None,
    ) -> None:
        try:
            import grpc
        except ModuleNotFoundError:
            raise MissingExtraError("serving flows", "hubble") from None
        options = options or ServerOptions()
        observer = Observer(
            source,
            node=options.node,
            streams=options.streams,
            events=events or AgentEvents(),
            peers=peers or Peers(),
        )
        self._threads = ThreadPoolExecutor(options.streams + _SPARE, thread_name_prefix="hubble")
        self._server = grpc.server(
            self._threads,
            handlers=[_handler(name, methods) for name, methods in observer.methods.items()],
            maximum_concurrent_rpcs=options.streams + _SPARE,
            options=[
                ("grpc.so_reuseport", 0),  # an address that is taken is an error, not shared
                ("grpc.keepalive_time_ms", 30_000),  # a client that has gone without a word is noticed
                ("grpc.max_receive_message_length", 1 << 20),
                ("grpc.max_metadata_size", 16 << 10),
                ("grpc.max_allowed_incoming_connections", _connections(len(options.listen))),
                # Those above are told to come back later; beyond these they are cancelled without a word.
                ("grpc.server.max_pending_requests", 4096),
                ("grpc.server.max_pending_requests_hard_limit", 8192),
            ],
        )
        try:
            self.addresses = tuple(_listen(self._server, each, options.tls) for each in options.listen)
            self._server.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all streams, and stop listening."""
        self._server.stop(grace=0).wait()
        self._threads.shutdown()


def _connections(addresses: int) -> int:
    """How many connections each of so many addresses takes."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return _CONNECTIONS
    return max(1, min(_CONNECTIONS, descriptors // 2 // max(1, addresses)))


def _handler(name: str, methods: dict[str, Callable[[Any, Any], Any]]) -> Any:
    import grpc

    found = {}
    for each in service(name).methods:
        if each.name in methods:
            streaming = each.server_streaming
            make = grpc.unary_stream_rpc_method_handler if streaming else grpc.unary_unary_rpc_method_handler
            found[each.name] = make(
                methods[each.name],
                request_deserializer=message(each.input_type.full_name).FromString,
                response_serializer=message(each.output_type.full_name).SerializeToString,
            )
    return grpc.method_handlers_generic_handler(name, found)


def _listen(server: Any, address: str, tls: TlsFiles | None) -> str:
    """Where it listens now."""
    local = address.startswith("unix:")
    secure = _credentials(tls) if tls is not None and not local else None
    try:
        if local:
            path = Path(address.removeprefix("unix:").removeprefix("//"))
            path.parent.mkdir(parents=True, exist_ok=True)
            if _is_served(path):  # whose socket gRPC would take away
                raise OSError(EADDRINUSE, "somebody serves there already")
            bound = server.add_insecure_port(f"unix:{path}")
            path.chmod(0o660)  # nobody can connect before the server starts
        else:
            host, _, port = address.rpartition(":")
            if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
                raise ValueError("an address is HOST:PORT, or unix:///PATH")
            address = f"{host or '[::]'}:{port}"
            if secure is None:
                bound = server.add_insecure_port(address)
            else:
                bound = server.add_secure_port(address, secure)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(address, "hubble.listen", f"cannot listen there: {error}") from None
    return address if local else f"{address.rpartition(':')[0]}:{bound}"


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.connect(str(path))
        return True
    return False


def _credentials(tls: TlsFiles) -> Any:
    import grpc

    read: list[Any] = [None, None]
    said = [""]

    def current() -> Any:
        """The credentials of the files as they are now, for each client that comes; None: the same."""
        paths = [path for path in (tls.certificate, tls.key, tls.clients) if path is not None]
        try:
            state = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in paths]
            if state == read[0]:
                return None
            contents = [path.read_bytes() for path in paths]
            _check(tls)
        except OSError as error:  # in the middle of being exchanged
            said[0] = str(error)
            return None
        pair = (contents[1], contents[0])
        read[:] = (
            state,
            grpc.ssl_server_certificate_configuration(
                [pair], root_certificates=contents[2] if tls.clients else None
            ),
        )
        return read[1]

    first = current()
    if first is None:
        what = f"it, its key or the clients' cannot be read: {said[0]}"
        raise ConfigError(str(tls.certificate), "hubble.tls", what)
    return grpc.dynamic_ssl_server_credentials(
        first, current, require_client_authentication=tls.clients is not None
    )


def _check(tls: TlsFiles) -> None:
    """Whether the files are certificates, and belong together: gRPC would only say that it cannot listen.

    :raises OSError: they are not.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key, _no_password)
    if tls.clients is not None:
        context.load_verify_locations(tls.clients)


def _no_password() -> str:
    """Instead of one that whoever sits at the terminal would be asked for."""
    raise OSError("the key is encrypted")
