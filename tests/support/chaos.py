"""What goes wrong between a server and who follows it, each by a method, in an order of chance."""

from __future__ import annotations

import os
import random
import re
import time

from attrs import evolve

from tests.support.api_double import ApiDouble
from tests.support.api_requests import Query, Refusal
from tests.support.watching import HASTY, part, service

_NAMES = re.compile(r"s\d")

SECONDS = float(os.environ.get("K8SDATAPATH_CHAOS_SECONDS", "20"))
"""How long: some seconds will do each time, minutes now and then."""
IMPATIENT = evolve(HASTY, answer=0.5, watch=0.5, silence=0.3, most=0.1)


class Chaos:
    """A server to which things happen. Objects that it has not made it leaves alone.

    :ivar seed: repeats the order of what happens; it is printed, so that a test that fails tells it.
    """

    def __init__(self, double: ApiDouble, seed: int | None = None) -> None:
        self.double = double
        self.seed = random.randrange(1 << 32) if seed is None else seed
        self.chance = random.Random(self.seed)
        print(f"seed {self.seed}")
        self.history = 10**7
        double.restore(self.history)

    def change(self) -> None:
        chance, number = self.chance, self.chance.randrange(12)
        name = f"s{number}"
        if chance.random() < 0.5:
            value = service(name, chance.randrange(1, 65536), number=100 + number)
            self.double.put("services", value, recreate=chance.random() < 0.2)
        else:
            addresses = {f"10.244.9.{chance.randrange(1, 9)}" for _ in range(chance.randrange(4))}
            slice_name = f"{name}-{chance.choice('ab')}"
            self.double.put("endpointslices", part(name, *sorted(addresses), name=slice_name))

    def remove(self) -> None:
        plural = self.chance.choice(("services", "endpointslices"))
        if kept := sorted(key for key in self.double.objects(plural) if _NAMES.match(key[1])):
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

    def happen(self) -> None:
        """Some changes, and a fault."""
        for _ in range(self.chance.randrange(20)):
            getattr(self, self.chance.choice(CHANGES))()
        getattr(self, self.chance.choice(FAULTS))()

    def calm(self) -> None:
        """All is well again."""
        self.double.stall(False)
        self.double.refuse = lambda query: None
        self.double.spoil = lambda line: [line]


CHANGES = ("change", "change", "change", "remove")
FAULTS = ("cut", "compact", "compact_and_cut", "restore", "restart", "stall", "refuse", "spoil", "calm")
