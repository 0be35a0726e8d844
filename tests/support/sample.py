"""A key and a value with a field of every kind, as tests/data/maps.bpf.c has them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from k8sdatapath.layout import addr, array, be16, cstr, i32, mac, struct, u16, u32, u64, zeros


@struct
class Point:
    x: u16
    y: be16


@struct
class Sample:
    """The twin of ``struct sample`` in tests/data/maps.bpf.c."""

    source: addr
    at: Point
    history: Annotated[tuple[int, ...], array(u32, 3)]
    total: u64
    delta: i32
    color: u32
    name: Annotated[str, cstr(8)]
    mac: mac
    pad: ClassVar = zeros(2)
