"""Packets that a node takes as if they had just arrived, with no sender and no receiver in the figures.

A small XDP program (csrc/again.bpf.c) makes them at a device of the node (``BPF_F_TEST_XDP_LIVE_FRAMES``);
another one (csrc/sink.bpf.c), at the far end of the device by which they leave, counts and drops them.
"""

from __future__ import annotations

import os

from attrs import evolve, field, frozen

from benchmarks.harness import CSRC
from benchmarks.packet_cost import xdp_context
from k8sdatapath import compiler, maps
from k8sdatapath.layout import u64
from k8sdatapath.net.netns import NetNs
from k8sdatapath.objects import Object, ObjectSpec
from k8sdatapath.programs import XDP, RunResult
from k8sdatapath.pybpf import progs
from k8sdatapath.pybpf.fd import Fd

LIVE_FRAMES = 2  # BPF_F_TEST_XDP_LIVE_FRAMES
BATCH = 64

NODE_MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"


def generator() -> ObjectSpec:
    return compiler.compile(CSRC / "again.bpf.c", flags=["-Werror", "-DAT_XDP"])


def sink() -> ObjectSpec:
    return compiler.compile(CSRC / "sink.bpf.c", flags=["-Werror"])


def device(name: str, peer: str) -> tuple[str, ...]:
    """What makes a device of the node and its far end, in the words of ``ip -batch``."""
    return (
        f"link add {name} address {NODE_MAC} type veth peer name {peer} address {PEER_MAC}",
        f"link set {name} up",
        f"link set {peer} up",
    )


@frozen
class Source:
    """A generator of one frame, at a device."""

    netns: NetNs
    loaded: Object
    index: int
    frame: bytes = field(repr=False)

    def begin(self, frame: bytes) -> Source:
        """From the first packet on, with another frame."""
        self.loaded.map("start", maps.Array)[0] = frame[:54].ljust(64, b"\0")
        self.loaded.map("count", maps.Array[u64])[0] = 0
        return evolve(self, frame=frame)

    def give(self, program: Fd | None = None) -> Source:
        """To this program, or to the stack."""
        tested = self.loaded.program("empty", XDP) if program is None else program
        self.loaded.map("tested", maps.ProgArray)[0] = tested
        return self

    def send(self, packets: int) -> int:
        """Nanoseconds a packet."""
        return self.netns.call(self._send, packets)

    def _send(self, packets: int) -> int:
        """In a thread of its own, which nothing else on this CPU interrupts."""
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        fd, ctx = self.loaded.program("again", XDP).fd, xdp_context(self.index, len(self.frame))
        done = progs.run(fd, self.frame, ctx=ctx, repeat=packets, flags=LIVE_FRAMES, batch_size=BATCH)
        return done[3]  # as the kernel measured it: without making and freeing the frames

    def test_run(self, packets: int) -> RunResult:
        """The program alone: nothing is sent."""
        ctx = xdp_context(self.index, len(self.frame))
        program = self.loaded.program("again", XDP)
        return self.netns.call(program.run, self.frame, ctx=ctx, repeat=packets)


@frozen
class Path:
    """A source, and what counts at the end of the way."""

    name: str
    source: Source
    arrived: maps.Array[int]

    def send(self, packets: int) -> int:
        """Nanoseconds a packet, all of which arrived."""
        before = self.arrived[0]
        taken = self.source.send(packets)
        if (came := self.arrived[0] - before) < packets:
            raise RuntimeError(f"{self.name}: of {packets} packets {came} arrived")
        return taken
