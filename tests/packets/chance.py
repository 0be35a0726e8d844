"""When counts are as even as chance makes them."""

from __future__ import annotations

from collections.abc import Collection


def is_even(counts: Collection[int]) -> bool:
    """Whether equal chances could have given these counts: chi-square, wrong once in 10^9."""
    freedom = len(counts) - 1
    mean = sum(counts) / len(counts)
    square = sum((count - mean) ** 2 / mean for count in counts)
    spread = 2 / (9 * freedom)  # Wilson and Hilferty: the cube root is nearly normal
    return ((square / freedom) ** (1 / 3) - 1 + spread) / spread**0.5 < 6
