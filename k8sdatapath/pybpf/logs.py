"""What libbpf and the verifier said, captured per thread."""

from __future__ import annotations

import logging
import re

from k8sdatapath.pybpf.lib import ffi, lib

logger = logging.getLogger("k8sdatapath.libbpf")

_FAILED = re.compile(r"prog '([^']+)': BPF program load failed")
_VERIFIER = re.compile(r"-- BEGIN PROG LOAD LOG --\n(.*?)-- END PROG LOAD LOG --", re.DOTALL)


def start() -> None:
    """Begin to collect in this thread; earlier text is forgotten."""
    lib.kd_log_start()


def take() -> str:
    """All that was said in this thread since :func:`start`; the logger ``k8sdatapath.libbpf`` gets it too."""
    size = lib.kd_log_size()
    if not size:
        return ""
    room = ffi.new("char[]", size)
    text = bytes(ffi.buffer(room, lib.kd_log_take(room, size))).decode(errors="replace")
    logger.debug("%s", text)
    return text


def rejected_program(text: str) -> tuple[str, str] | None:
    """``(program, verifier log)`` if the text tells that the verifier refused a program."""
    failed = _FAILED.search(text)
    if failed is None:
        return None
    log = _VERIFIER.search(text)
    return failed[1], log[1] if log else ""


def last_line(text: str) -> str:
    """The last line, without libbpf's own prefix: the shortest account of what went wrong."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("libbpf: ").strip() if lines else ""


def error_text(number: int) -> str:
    """What libbpf calls an error number; libbpf has numbers of its own above 4000."""
    room = ffi.new("char[]", 128)
    lib.libbpf_strerror(number, room, len(room))
    return ffi.string(room).decode(errors="replace")  # type: ignore[no-any-return]
