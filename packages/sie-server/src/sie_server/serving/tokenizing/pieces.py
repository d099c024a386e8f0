"""Which texts of a request are tokenised first. Pure."""

from __future__ import annotations

from collections.abc import Sequence

FIRST = (
    1.15  # size of the first piece, in batches: estimates are not exact, and the first batch shall be full
)
MOST_PIECES = 16  # each costs about 0.2 ms: the query is tokenised again, and the device thread is woken


def pieces(texts: Sequence[str], sizes: Sequence[int], batches: float) -> list[list[int]]:
    """Divide texts into pieces of about a batch each, the largest texts first; return their places.

    `sizes` are the estimated sizes of the texts in any unit, `batches` is the estimated size of all. The longest
    texts are first, because batches have sequences of similar length. Equal texts are in one piece.
    """
    order = sorted(range(len(texts)), key=lambda i: (-sizes[i], hash(texts[i])))
    room = sum(sizes) / min(batches, MOST_PIECES)
    found: list[list[int]] = [[]]
    left = room * FIRST
    for place, i in enumerate(order):
        if left <= 0 and texts[i] != texts[order[place - 1]]:
            found.append([])
            left = room
        found[-1].append(i)
        left -= sizes[i]
    return found
