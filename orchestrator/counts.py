"""Numbers of things in messages: one of them is written as one."""

from __future__ import annotations


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """``1 step``, ``3 steps``, ``20,000 rows``, ``1.5 epochs``.

    Args:
        plural: Of a noun that takes more than an s.
    """
    text = f"{number:g}" if isinstance(number, float) else f"{number:,}"
    return f"{text} {noun}" if number == 1 else f"{text} {plural or f'{noun}s'}"
