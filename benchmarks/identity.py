"""How many identities an etcd gives in a second, to many nodes that want the same ones at once."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from benchmarks import harness
from benchmarks.harness import Figure, median, say
from k8sdatapath.identity import StoreAllocator
from k8sdatapath.identity.etcd import EtcdStore
from k8sdatapath.identity.records import IDENTITIES, NUMBERS
from k8sdatapath.model.labels import Labels, pod_labels
from tests.support.etcd import etcd

BENCH = "identity"
ROUNDS = 5
NODES, SETS = 8, 200
PUTS = 400


@frozen
class Round:
    """What one round came to.

    :ivar raw: transactions that this etcd carries out in a second, one after the other.
    :ivar new: sets of labels that got a number, in a second.
    :ivar duplicates: sets that have more than one number, and numbers that are of more than one set.
    """

    raw: float
    new: float
    duplicates: int


def main() -> None:
    print(f"{BENCH}: {NODES} allocators x {SETS} sets of labels, {ROUNDS} rounds\n")
    with tempfile.TemporaryDirectory() as directory, etcd(Path(directory)) as server:
        rounds = [once(server.url, number) for number in range(ROUNDS)]
    harness.table(
        ["an etcd of one member", "median", "lowest"],
        [
            ("identities given, a second", *ends([each.new for each in rounds])),
            ("of the nodes' acquisitions", *ends([each.new * NODES for each in rounds])),
            ("its transactions one by one, a second", *ends([each.raw for each in rounds])),
        ],
    )
    harness.report(BENCH, ROUNDS, figures(rounds))


def figures(rounds: list[Round]) -> dict[str, Figure]:
    new = tuple(each.new for each in rounds)
    raw = tuple(each.raw for each in rounds)
    return {
        "allocations_per_s_etcd": Figure(
            tuple(each * NODES for each in new),
            "1/s",
            f"{NODES} allocators acquire the same {SETS} new sets of labels, each in an order of its own",
            "none",
            at_least=200.0,
        ),
        "allocations_over_transactions": Figure(
            harness.ratios([each * NODES for each in new], raw),
            "ratio",
            "the same",
            "transactions of one client one after the other, at the same etcd",
            at_least=0.25,
        ),
        "duplicates": Figure(
            tuple(float(each.duplicates) for each in rounds),
            "",
            "sets that have several numbers, and numbers of several sets",
            "none",
            at_most=0.0,
        ),
    }


def once(url: str, number: int) -> Round:
    with connected(url, number) as (store, *_):
        began = time.perf_counter()
        for each in range(PUTS):
            store.create(NUMBERS, f"raw-{each}", {})
        raw = PUTS / (time.perf_counter() - began)
    with connected(url, number + ROUNDS) as stores:
        wanted = [labels(each) for each in range(SETS)]
        nodes = [StoreAllocator(each, f"n{at}", beats=False) for at, each in enumerate(stores)]
        began = time.perf_counter()
        with ThreadPoolExecutor(NODES) as pool:
            given = {each for found in pool.map(acquire, nodes, [wanted] * NODES) for each in found}
        seconds = time.perf_counter() - began
        there = {each.value["number"] for each in stores[0].list(IDENTITIES)}
        duplicates = len(given) - len({text for text, _ in given}) + len(given) - len({n for _, n in given})
        duplicates += len(there ^ {number for _, number in given})
    say(f"round {number}: {SETS / seconds:.0f} identities a second, {raw:.0f} transactions")
    return Round(raw, SETS / seconds, duplicates)


@contextmanager
def connected(url: str, number: int) -> Iterator[list[EtcdStore]]:
    """A store for each node, all with the same keys, which nobody else has."""
    stores = [EtcdStore([url], prefix=f"/bench/{number}") for _ in range(NODES)]
    try:
        yield stores
    finally:
        for each in stores:
            each.close()


def acquire(node: StoreAllocator, wanted: list[Labels]) -> list[tuple[str, int]]:
    own = list(wanted)
    random.shuffle(own)
    return [(each.text, node.acquire(each).number) for each in own]


def labels(number: int) -> Labels:
    return pod_labels(
        {"app": f"app-{number}", "tier": f"t{number % 7}"},
        namespace=f"ns{number % 20}",
        service_account="default",
    )


def ends(samples: list[float]) -> tuple[float, float]:
    return median(samples), min(samples)
