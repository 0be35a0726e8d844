"""What the plugin and the agent say to each other, and what the CNI specification says of both.

Over a unix socket: a request as one line of JSON, and an answer likewise, which is ``{}`` or an error as the
specification has them. Source: https://www.cni.dev/docs/spec/ (1.1.0).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from k8sdatapath.errors import DatapathError

__all__ = ["DEFAULT_SOCKET", "LONGEST", "VERSIONS", "CniCode", "CniError"]

DEFAULT_SOCKET = "/run/k8sdatapath/cni.sock"
VERSIONS = ("1.0.0", "1.1.0")
LONGEST = 1 << 20
"""Bytes of a request or an answer."""


class CniCode(IntEnum):
    """The specification's numbers for what can go wrong, and from 100 on our own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    NO_DEVICE = 100
    """The pod's device on the node is not to be told from what the plugin before has said."""
    DATAPATH = 101
    """The datapath refused the pod."""


class CniError(DatapathError):
    """What a plugin tells the container runtime when it fails.

    :ivar code: what kind of failure.
    :ivar details: more about it, may be empty.
    """

    def __init__(self, code: CniCode, message: str, details: str = "") -> None:
        super().__init__(f"{message}: {details}" if details else message)
        self.code = code
        self.message = message
        self.details = details

    def as_json(self) -> dict[str, Any]:
        """As the specification wants it, but for ``cniVersion``."""
        return {"code": int(self.code), "msg": self.message, "details": self.details}
