"""Whatever goes wrong, in whatever order: in the end the source has told what the server has."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable

from attrs import evolve
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from k8sdatapath.kube.watch import KubeWatch
from tests.support.api_double import ApiDouble, Query, Refusal
from tests.support.watching import (
    HASTY,
    Listener,
    client,
    endpoints_of,
    part,
    ports_of,
    service,
    wait,
)

SECONDS = float(os.environ.get("K8SDATAPATH_CHAOS_SECONDS", "20"))
IMPATIENT = evolve(HASTY, answer=0.5, watch=0.5, silence=0.3, most=0.1)


class Chaos:
    """A server to which things happen, each by a method."""

    def __init__(self, double: ApiDouble, chance: random.Random) -> None:
        self.double, self.chance = double, chance
        self.history = 10**7
        double.restore(self.history)

    def change(self) -> None:
        chance, name = self.chance, f"s{self.chance.randrange(12)}"
        if chance.random() < 0.5:
            value = service(name, chance.randrange(1, 65536))
            self.double.put("services", value, recreate=chance.random() < 0.2)
        else:
            addresses = {f"10.244.1.{chance.randrange(1, 9)}" for _ in range(chance.randrange(4))}
            self.double.put("endpointslices", part(name, *sorted(addresses)))

    def remove(self) -> None:
        plural = self.chance.choice(("services", "endpointslices"))
        if kept := sorted(self.double.objects(plural)):
            self.double.delete(plural, *self.chance.choice(kept))

    def cut(self) -> None:
        self.double.cut()

    def compact(self) -> None:
        self.double.gone_as_event = self.chance.random() < 0.5
        self.double.compact()

    def compact_and_cut(self) -> None:
        self.compact()
        self.double.cut()

    def restore(self) -> None:
        """So far back that it does not soon come to versions that are known: that nobody could notice."""
        self.history -= 10**5
        self.double.restore(self.history)

    def restart(self) -> None:
        self.double.down()
        for _ in range(self.chance.randrange(4)):
            self.change()
            self.remove()
        self.double.up()

    def stall(self) -> None:
        self.double.stall(self.chance.random() < 0.5)

    def refuse(self) -> None:
        rate = self.chance.choice((0.0, 0.3, 0.9))
        codes = [(429, "TooManyRequests"), (500, "InternalError"), (503, "ServiceUnavailable"), (410, "Gone")]

        def refuse(query: Query) -> None:
            if random.random() < rate:
                raise Refusal(*random.choice(codes))

        self.double.refuse = refuse

    def spoil(self) -> None:
        """Lines lost, doubled, torn, late, or other than they were."""
        rate = self.chance.choice((0.0, 0.1, 0.5))

        def spoil(line: bytes) -> list[bytes]:
            if random.random() >= rate:
                return [line]
            time.sleep(random.choice((0, 0, 0.02)))
            middle = random.randrange(len(line))
            start = random.randrange(20)
            return random.choice(
                (
                    [line, line],
                    [line[:middle], line[middle:]],
                    [b"\n", line],
                    [b"garbage\n", line],
                    [line[:start] + b"\xff" + line[start + 1 :]],
                    [b'{"type":"ADDED","object":{}}\n'],
                )
            )

        self.double.spoil = spoil

    def calm(self) -> None:
        self.double.stall(False)
        self.double.refuse = lambda query: None
        self.double.spoil = lambda line: [line]


CHANGES = ("change", "change", "change", "remove")
FAULTS = ("cut", "compact", "compact_and_cut", "restore", "restart", "stall", "refuse", "spoil", "calm")


def agreed(listener: Listener, double: ApiDouble) -> bool:
    return (listener.ports(), listener.endpoints()) == (ports_of(double), endpoints_of(double))


def end(listener: Listener, chaos: Chaos) -> None:
    """All is well again: then all is told, soon, and each object by one more change at the latest."""
    chaos.calm()
    listener.until(lambda: agreed(listener, chaos.double))
    assert listener.synced
    chaos.double.put("services", service("last", 4242))
    chaos.double.put("endpointslices", part("last", "10.244.9.9"))
    listener.until(lambda: agreed(listener, chaos.double))


def test_chaos() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with (
        ApiDouble() as double,
        KubeWatch(client(double), ["services", "endpointslices"], page_size=3, patience=IMPATIENT) as source,
    ):
        chaos, listener = Chaos(double, chance), Listener(source)
        started = time.process_time()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for _ in range(chance.randrange(20)):
                getattr(chaos, chance.choice(CHANGES))()
            getattr(chaos, chance.choice(FAULTS))()
            for _ in range(chance.randrange(4)):
                listener.take()
        end(listener, chaos)
        assert time.process_time() - started < SECONDS  # two watches and the double itself: no busy loop
        assert min(each.lists for each in source.status.values()) > 10
        assert min(each.errors for each in source.status.values()) > 20
    assert [each.name for each in threading.enumerate() if each.name.startswith("kd-watch")] == []


steps = st.lists(st.sampled_from((*CHANGES, *FAULTS, "listen", "listen")), max_size=25)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(steps=steps, seed=st.integers(0, 1 << 16))
def test_any_sequence_ends_in_agreement(steps: list[str], seed: int) -> None:
    with (
        ApiDouble() as double,
        KubeWatch(client(double), ["services", "endpointslices"], page_size=2, patience=IMPATIENT) as source,
    ):
        chaos, listener = Chaos(double, random.Random(seed)), Listener(source)
        listener.take()
        todo: dict[str, Callable[[], object]] = {"listen": listener.take}
        for step in steps:
            note(step)
            todo.get(step, lambda step=step: getattr(chaos, step)())()  # type: ignore[misc]
        end(listener, chaos)


def test_reordered_across_resources() -> None:
    """One resource is late, the other is not: what each tells is still right."""
    with (
        ApiDouble() as double,
        KubeWatch(client(double), ["services", "endpointslices"], patience=HASTY) as source,
    ):
        listener = Listener(source)
        listener.until(lambda: listener.synced)
        late = threading.Event()

        def spoil(line: bytes) -> list[bytes]:
            if b'"Service"' in line:
                late.wait(10)
            return [line]

        double.spoil = spoil
        double.put("services", service("web"))
        double.put("endpointslices", part("web", "10.244.1.2"))
        listener.until(lambda: listener.endpoints())
        assert listener.ports() == {}
        late.set()
        listener.until(lambda: agreed(listener, double))
        wait(lambda: all(not each.error for each in source.status.values()))
