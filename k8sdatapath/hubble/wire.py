"""Hubble's messages: classes made of our own schema (``proto/``), in a pool of their own.

So a program may have another copy of the same schema: names of one pool do not meet those of another.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from k8sdatapath.errors import MissingExtraError

__all__ = ["descriptor_set", "enum", "message", "service"]


def descriptor_set() -> bytes:
    """The compiled schema, as the compiler of Protocol Buffers writes it."""
    return resources.files("k8sdatapath.hubble").joinpath("descriptors.binpb").read_bytes()


@cache
def _pool() -> Any:
    try:
        from google.protobuf import (
            any_pb2,
            descriptor_pb2,
            descriptor_pool,
            field_mask_pb2,
            timestamp_pb2,
            wrappers_pb2,
        )
    except ModuleNotFoundError:
        raise MissingExtraError("speaking Hubble's protocol", "hubble") from None
    pool = descriptor_pool.DescriptorPool()
    for known in (any_pb2, field_mask_pb2, timestamp_pb2, wrappers_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptor_set()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@cache
def message(name: str) -> Any:
    """The class of a message: ``message("flow.Flow")``.

    :raises MissingExtraError: protobuf is not installed.
    """
    pool = _pool()
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def enum(name: str) -> Any:
    """The description of an enum: ``enum("flow.Verdict")``."""
    return _pool().FindEnumTypeByName(name)


@cache
def service(name: str) -> Any:
    """The description of a service: ``service("observer.Observer")``.

    :raises MissingExtraError: protobuf is not installed.
    """
    return _pool().FindServiceByName(name)
