"""A client of Hubble's protocol that shares nothing with the server: its classes are made of a table.

``tests/data/hubble_schema.txt`` holds names, numbers and types as Hubble has them; the package's ``.proto``
files are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    field_mask_pb2,
    message_factory,
    timestamp_pb2,
    wrappers_pb2,
)

ANY = "127.0.0.1:0"
SCHEMA = Path(__file__).parents[1] / "data" / "hubble_schema.txt"
KNOWN = (any_pb2, field_mask_pb2, timestamp_pb2, wrappers_pb2)
SCALARS = {
    name: getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("string", "bool", "uint32", "uint64", "int32", "int64", "double")
}
METHODS = {
    "GetFlows": True,
    "GetAgentEvents": True,
    "GetDebugEvents": True,
    "GetNodes": False,
    "GetNamespaces": False,
    "ServerStatus": False,
}


def table() -> list[tuple[str, str, list[str]]]:
    """Kind, full name and lines of each message and enum."""
    found: list[tuple[str, str, list[str]]] = []
    for line in SCHEMA.read_text().splitlines():
        if line.startswith("  "):
            found[-1][2].append(line.strip())
        elif not line.startswith("#"):
            kind, name = line.split()
            found.append((kind, name, []))
    return found


@cache
def pool() -> Any:
    """A pool with the schema of the table, and the health protocol."""
    enums = {name for kind, name, _ in table() if kind == "enum"}
    files: dict[str, Any] = {}
    homes: dict[str, Any] = {}
    for kind, name, lines in table():
        package, _, inner = name.partition(".")
        file = files.setdefault(package, descriptor_pb2.FileDescriptorProto(name=f"table/{package}.proto"))
        file.package, file.syntax = package, "proto3"
        outer, _, short = inner.rpartition(".")
        home = homes[f"{package}.{outer}"] if outer else file
        if kind == "enum":
            made = home.enum_type.add(name=short)
            for line in lines:
                label, _, number = line.partition("=")
                made.value.add(name=label, number=int(number))
        else:
            made = homes[name] = (home.nested_type if outer else home.message_type).add(name=short)
            for line in lines:
                add_field(made, line.split(), enums)
    found = descriptor_pool.DescriptorPool()
    for known in KNOWN:
        found.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    for package in ("flow", "relay", "observer", "peer"):
        file = files[package]
        file.dependency.extend(known.DESCRIPTOR.name for known in KNOWN)
        if package == "observer":
            file.dependency.extend(["table/flow.proto", "table/relay.proto"])
        found.AddSerializedFile(file.SerializeToString())
    return found


def add_field(made: Any, words: list[str], enums: set[str]) -> None:
    number, name, kind, *rest = words
    field = made.field.add(name=name, number=int(number), label=3 if "repeated" in rest else 1)
    if kind in SCALARS:
        field.type = SCALARS[kind]
    else:
        field.type = 14 if kind in enums else 11
        field.type_name = f".{kind}"
    if "in" in rest:
        union = rest[rest.index("in") + 1]
        names = [each.name for each in made.oneof_decl]
        if union not in names:
            made.oneof_decl.add(name=union)
            names.append(union)
        field.oneof_index = names.index(union)


@cache
def message(name: str) -> Any:
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(name))


class HubbleClient:
    """Asks a server: ``client.flows(number=5)``."""

    def __init__(self, address: str, credentials: Any = None, **options: Any) -> None:
        pairs = list(options.items())
        self.channel = (
            grpc.secure_channel(address, credentials, pairs)
            if credentials is not None
            else grpc.insecure_channel(address, pairs)
        )

    def __enter__(self) -> HubbleClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.channel.close()

    def ask(self, method: str, **request: Any) -> Any:
        """The answer, or for a stream the call that iterates over them."""
        streaming = METHODS[method]
        make = self.channel.unary_stream if streaming else self.channel.unary_unary
        call = make(
            f"/observer.Observer/{method}",
            request_serializer=message(f"observer.{method}Request").SerializeToString,
            response_deserializer=message(f"observer.{method}Response").FromString,
        )
        return call(message(f"observer.{method}Request")(**request), timeout=30)

    def flows(self, **request: Any) -> list[Any]:
        """The flows of a request that ends."""
        return [answer.flow for answer in self.ask("GetFlows", **request) if answer.HasField("flow")]

    def notify(self) -> Iterator[Any]:
        call = self.channel.unary_stream(
            "/peer.Peer/Notify",
            request_serializer=message("peer.NotifyRequest").SerializeToString,
            response_deserializer=message("peer.ChangeNotification").FromString,
        )
        stream: Iterator[Any] = call(message("peer.NotifyRequest")(), timeout=30)
        return stream

    def health(self, service: str) -> bytes:
        """The bytes of the answer: the client knows no schema of it."""
        call = self.channel.unary_unary(
            "/grpc.health.v1.Health/Check", request_serializer=None, response_deserializer=None
        )
        name = service.encode()
        answer: bytes = call(bytes([0x0A, len(name)]) + name if name else b"", timeout=30)
        return answer


def status(call: Any) -> tuple[str, str]:
    """The code and the words of a call that is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call) if hasattr(call, "__iter__") else call()
    return caught.value.code().name, caught.value.details()
