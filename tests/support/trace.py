"""traceroute(8) as a function: the program is not on every machine."""

from __future__ import annotations

import socket
import struct
import time
from ipaddress import ip_address

from k8sdatapath.lab.host import Host
from k8sdatapath.model import IPAddress

# linux/in.h, in6.h, errqueue.h
_RECVERR = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}
_TTL = {4: (socket.IPPROTO_IP, 2), 6: (socket.IPPROTO_IPV6, 16)}
_OFFENDER_AT = {4: (20, 24), 6: (24, 40)}  # behind struct sock_extended_err
_TIME_EXCEEDED = {4: 11, 6: 3}


def hops(host: Host, target: IPAddress, port: int) -> list[IPAddress]:
    """Who says that a datagram's life is over, for each life; ends with the first that is answered."""
    found: list[IPAddress] = []
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    for life in range(1, 10):
        with host.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.05)
            sock.setsockopt(*_RECVERR[target.version], 1)
            sock.setsockopt(*_TTL[target.version], life)
            deadline = time.monotonic() + 10
            while True:
                try:
                    sock.sendto(b"?", (str(target), port))
                    sock.recv(100)
                    return found
                except TimeoutError:  # an answer may be kept back, as so many were given
                    assert time.monotonic() < deadline, found
                except OSError:
                    found.append(_offender(sock, target.version))
                    break
    raise AssertionError(found)


def _offender(sock: socket.socket, version: int) -> IPAddress:
    _, ancillary, _, _ = sock.recvmsg(100, 500, socket.MSG_ERRQUEUE)
    ((_, _, data),) = (each for each in ancillary if each[:2] == _RECVERR[version])
    _, _, kind = struct.unpack_from("=IBB", data)
    assert kind == _TIME_EXCEEDED[version], f"ICMP type {kind}"
    begin, end = _OFFENDER_AT[version]
    return ip_address(data[begin:end])
