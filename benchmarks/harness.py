"""What all benchmarks share: figures, interleaved rounds, tables, result files, compiled helpers."""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

from attrs import frozen

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
CSRC = HERE / "csrc"
DRAWS = 1000
CPU = max(os.sched_getaffinity(0))  # where everything that is timed runs


@frozen
class Figure:
    """One number that the project promises something about.

    ``samples`` holds one value per round; the figure is their median, its spread their lowest and
    highest. ``at_most`` or ``at_least`` is the promise. ``sure`` is between which values the median is, with
    95 % certainty, where that was worked out.
    """

    samples: tuple[float, ...]
    unit: str
    ours: str
    baseline: str
    at_most: float | None = None
    at_least: float | None = None
    sure: tuple[float, float] | None = None

    @property
    def value(self) -> float:
        return statistics.median(self.samples)

    @property
    def target(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"

    @property
    def holds(self) -> bool:
        if self.at_least is not None:
            return self.value >= self.at_least
        return self.at_most is not None and self.value <= self.at_most

    def as_json(self) -> dict[str, object]:
        return {
            "value": shorten(self.value),
            "unit": self.unit,
            "spread": [shorten(min(self.samples)), shorten(max(self.samples))],
            **({"sure": [shorten(each) for each in self.sure]} if self.sure else {}),
            "ours": self.ours,
            "baseline": self.baseline,
            "target": self.target,
            "holds": self.holds,
        }


def shorten(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def rounds_of(variants: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Every variant once a round, the order reversed each round, so that drift hits all alike."""
    for number in range(rounds):
        for variant in variants if number % 2 == 0 else reversed(variants):
            yield number, variant


def ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    """Round by round, of neighbours in time: what slowed the machine down slowed both."""
    return tuple(a / b for a, b in zip(above, below, strict=True))


def median(samples: Iterable[float]) -> float:
    return statistics.median(samples)


def sure(samples: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Between which values the median of all is, with 95 % certainty: of set-ups, and of rounds of each."""
    chance = random.Random(1)
    medians = sorted(
        median(
            each
            for rounds in chance.choices(samples, k=len(samples))
            for each in chance.choices(rounds, k=len(rounds))
        )
        for _ in range(DRAWS)
    )
    return medians[DRAWS // 40], medians[-DRAWS // 40]


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(f"  {text}", flush=True)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print left-aligned names and right-aligned numbers."""
    cells = [list(heads), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for number, row in enumerate(cells):
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(len(first)), *others]))
        if number == 0:
            print("  ".join("-" * width for width in widths))
    print(flush=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        size = abs(value)
        return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"
    return str(value)


def between(limits: tuple[float, float] | None, digits: int = 4) -> str:
    """Two numbers in a cell of a table."""
    return f"{limits[0]:.{digits}f} to {limits[1]:.{digits}f}" if limits else ""


def report(bench: str, rounds: int, figures: dict[str, Figure]) -> bool:
    """Print the figures, write ``results/BENCH.json``; true if every promise holds."""
    table(
        ["figure", "value", "unit", "lowest", "highest", "95 % sure", "target", "holds"],
        [
            (
                name,
                f.value,
                f.unit,
                min(f.samples),
                max(f.samples),
                between(f.sure),
                f.target,
                "yes" if f.holds else "NO",
            )
            for name, f in figures.items()
        ],
    )
    result = {
        "bench": bench,
        "machine": machine(),
        "kernel": platform.release(),
        "rounds": rounds,
        "figures": {name: figure.as_json() for name, figure in figures.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{bench}.json").write_text(json.dumps(result, indent=2) + "\n")
    return all(figure.holds for figure in figures.values())


def machine() -> str:
    """Processor, cores and memory."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = names.get("model name", platform.machine())
    family = "/".join(names[key] for key in ("cpu family", "model") if key in names)
    return f"{os.cpu_count()} vCPU {model} ({family}), {memory:.0f} GiB"


@contextmanager
def compiled(*names: str) -> Iterator[Callable[[str], Path]]:
    """Compile ``csrc/NAME.c`` into a throwaway directory; gives a function from name to program."""
    if not shutil.which("gcc"):
        raise SystemExit("the benchmarks compile small C programs: gcc is not installed")
    with tempfile.TemporaryDirectory(prefix="kdbench-") as directory:
        for name in names:
            command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", str(CSRC / f"{name}.c")]
            libraries = [] if name == "rr" else ["-lbpf"]
            subprocess.run([*command, "-o", f"{directory}/{name}", *libraries], check=True)
        yield lambda name: Path(directory, name)


class Helper:
    """A compiled program that takes orders, a line each, and answers each with a line.

    It ends when this process does, since then its standard input ends.
    """

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    def answer(self) -> str:
        line = self._stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        return line

    def ask(self, *order: object) -> str:
        self._stdin.write(" ".join(map(str, order)) + "\n")
        self._stdin.flush()
        return self.answer()

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._stdin.close()
        self._stdout.close()
        self._process.wait(timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def pinned(cpu: int = CPU) -> Iterator[None]:
    """Keep this process on one CPU meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
