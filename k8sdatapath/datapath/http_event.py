"""HTTPEvent: a request or a response, as the programs at a server's socket have seen it."""

from __future__ import annotations

from attrs import frozen

from k8sdatapath.model import IPAddress
from k8sdatapath.model.http_rules import HTTPRule
from k8sdatapath.tables.l7 import ConnFlags, EventKind, EventRow

__all__ = ["HTTPEvent"]


@frozen(kw_only=True)
class HTTPEvent:
    """Something was asked for over HTTP, or answered.

    :ivar time: seconds of the monotonic clock.
    :ivar client: address and port; likewise ``server``.
    :ivar at: the end where it was read: ``"server"``, or ``"client"``.
    :ivar identity: that of the other end, as policies know it; 0: no policy was asked.
    :ivar verdict: ``"allowed"``, ``"denied"``, ``"audited"`` (it would be denied), ``"response"``.
    :ivar reason: why it is denied, a name of those that ``L7Policy.stats`` has.
    :ivar rule: that allows it, if it is in force still.
    :ivar method: of the request, as far as it was read; likewise ``path`` and ``host``.
    :ivar status: of a response.
    :ivar latency: seconds from the request to the head of its response; None: not known, several are open.
    :ivar connection: the cookie of the socket.
    :ivar protocol: of the connection, ``"HTTP/1.1"`` or ``"HTTP/2"``.
    """

    time: float
    client: tuple[IPAddress, int]
    server: tuple[IPAddress, int]
    at: str
    identity: int
    verdict: str
    reason: str
    rule: HTTPRule | None
    method: str
    path: str
    host: str
    status: int
    latency: float | None
    connection: int
    protocol: str = "HTTP/1.1"

    @classmethod
    def of(cls, row: EventRow, reasons: dict[int, str], rules: dict[int, tuple[HTTPRule, ...]]) -> HTTPEvent:
        """What a record says.

        :param reasons: names by number.
        :param rules: those of each set by its number.
        """
        response = row.kind == EventKind.RESPONDED
        audited = ConnFlags(row.flags) & ConnFlags.AUDITED
        denied = "audited" if audited else "denied"
        verdict = "response" if response else denied if row.reason else "allowed"
        of_set = rules.get(row.rules, ())
        method, path, host = _words(row.text[: row.size])
        return cls(
            time=row.time / 1e9,
            client=(row.way.dst, row.way.dport),
            server=(row.way.src, row.way.sport),
            at="client" if ConnFlags(row.flags) & ConnFlags.CLIENT else "server",
            identity=row.identity,
            verdict=verdict,
            reason=reasons.get(row.reason, "") if row.reason else "",
            rule=of_set[row.rule - 1] if 0 < row.rule <= len(of_set) else None,
            method=method,
            path=path,
            host=host,
            status=row.status,
            latency=row.latency / 1e9 if row.latency else None,
            connection=row.cookie,
            protocol="HTTP/2" if ConnFlags(row.flags) & ConnFlags.HTTP2 else "HTTP/1.1",
        )

    def __str__(self) -> str:
        what = f"{self.method} {self.path}".strip()
        if self.verdict == "response":
            took = "" if self.latency is None else f" after {self.latency * 1000:.1f} ms"
            return f"{what} -> {self.status}{took}"
        why = f": {self.reason}" if self.reason else ""
        return f"{what} {self.verdict}{why}"


def _words(text: bytes) -> tuple[str, str, str]:
    """Method, path and host of the beginning of a request, as far as they are there."""
    line, *headers = text.decode("latin-1").split("\r\n")
    method, _, rest = line.partition(" ")
    host = ""
    for header in headers[:-1]:  # the last one may be incomplete
        name, _, value = header.partition(":")
        if name.lower() == "host":
            host = value.strip(" \t")
    return method, rest.partition(" ")[0], host
