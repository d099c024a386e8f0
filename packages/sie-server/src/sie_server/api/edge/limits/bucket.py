"""A token bucket, which limits a rate and allows bursts. It reads no clock: callers pass the time."""

from __future__ import annotations

ROUNDING_S = 1e-6  # so that the bucket has the units after exactly `wait_s` seconds


class Bucket:
    """Units that refill at a constant rate up to a capacity. It starts full and may go into debt."""

    def __init__(self, per_s: float, capacity: float) -> None:
        self.per_s, self.capacity = per_s, capacity
        self._left, self._at = capacity, 0.0

    def left(self, now: float) -> float:
        """Return the units at the time `now`, in seconds of a clock that never goes back. Negative: a debt."""
        self._left = min(self.capacity, self._left + self.per_s * max(0.0, now - self._at))
        self._at = max(self._at, now)
        return self._left

    def spend(self, units: float, now: float) -> None:
        """Remove units, also those that the bucket does not have."""
        self._left = self.left(now) - units

    def wait_s(self, units: float, now: float) -> float:
        """Return the seconds until the bucket has these units; 0 if it has them now."""
        wait = (units - self.left(now)) / self.per_s
        return wait if wait > ROUNDING_S else 0.0
