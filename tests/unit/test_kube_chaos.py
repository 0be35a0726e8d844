"""Whatever goes wrong, in whatever order: in the end the source has told what the server has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from hypothesis import given, note, settings
from hypothesis import strategies as st

from k8sdatapath.kube.watch import KubeWatch
from tests.support.api_double import ApiDouble
from tests.support.chaos import CHANGES, FAULTS, IMPATIENT, SECONDS, Chaos
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


def agreed(listener: Listener, double: ApiDouble) -> bool:
    return (listener.ports(), listener.endpoints()) == (ports_of(double), endpoints_of(double))


def end(listener: Listener, chaos: Chaos) -> None:
    """All is well again: then all is told, soon, and each object by one more change at the latest."""
    chaos.calm()
    listener.until(lambda: listener.synced and agreed(listener, chaos.double))
    chaos.double.put("services", service("last", 4242))
    chaos.double.put("endpointslices", part("last", "10.244.9.9"))
    listener.until(lambda: agreed(listener, chaos.double))


def test_chaos() -> None:
    with (
        ApiDouble() as double,
        KubeWatch(client(double), ["services", "endpointslices"], page_size=3, patience=IMPATIENT) as source,
    ):
        chaos, listener = Chaos(double), Listener(source)
        started = time.process_time()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            chaos.happen()
            for _ in range(chaos.chance.randrange(4)):
                listener.take()
        end(listener, chaos)
        assert time.process_time() - started < SECONDS  # two watches and the double itself: no busy loop
        assert min(each.lists for each in source.status.values()) > 10
        assert min(each.errors for each in source.status.values()) > 20
    assert [each.name for each in threading.enumerate() if each.name.startswith("kd-watch")] == []


steps = st.lists(st.sampled_from((*CHANGES, *FAULTS, "listen", "listen")), max_size=25)


@settings(max_examples=25)
@given(steps=steps, seed=st.integers(0, 1 << 16))
def test_any_sequence_ends_in_agreement(steps: list[str], seed: int) -> None:
    with (
        ApiDouble() as double,
        KubeWatch(client(double), ["services", "endpointslices"], page_size=2, patience=IMPATIENT) as source,
    ):
        chaos, listener = Chaos(double, seed), Listener(source)
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
