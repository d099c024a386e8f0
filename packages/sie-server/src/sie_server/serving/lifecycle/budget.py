"""What to say when a model or an adapter finds no room: both sizes, who holds the rest, and what would help."""

from __future__ import annotations

from collections.abc import Iterable

from sie_server.errors import ModelLoadFailed, SIEError
from sie_server.serving.lifecycle.slots import NoRoom, Slot

KEY = "memory_budget_mb"


def never(what: str, need: int, slots: Iterable[Slot], budget: int, beside: int = 0) -> SIEError:
    """It does not fit, whoever else gives way; `beside` is what an adapter cannot do without: its model."""
    if need + beside > budget:
        beside_it = f" beside the {_mib(beside)} of its model" * bool(beside)
        return ModelLoadFailed(
            f"{what} needs {_mib(need)}{beside_it}, and all models together may hold {_mib(budget)} ({KEY})",
            error_class="MemoryBudget",
            permanent=True,
            attempts=1,
        )
    return NoRoom(
        f"{what} needs {_mib(need)} of {_mib(budget)} ({KEY}), and what stays holds too much: "
        f"{_holders(slots)}. Unload one of them or raise {KEY}",
        retry_after_s=60,
    )


def none_yet(what: str, need: int, slots: Iterable[Slot], budget: int, waited_s: float) -> SIEError:
    """Models in use hold the memory; how long they will is not known, so the guess is as long as it took so far."""
    return NoRoom(
        f"{what} needs {_mib(need)} of {_mib(budget)} ({KEY}), held by models in use: {_holders(slots)}",
        retry_after_s=max(1.0, waited_s),
    )


def _holders(slots: Iterable[Slot]) -> str:
    holders = sorted((s for s in slots if s.memory_bytes), key=lambda slot: -slot.memory_bytes)
    return ", ".join(f"{slot.name} {_mib(slot.memory_bytes)}{_remarks(slot)}" for slot in holders)


def _remarks(slot: Slot) -> str:
    adapters = slot.memory_bytes - sum(version.nbytes for version in slot.versions)
    remarks = ["pinned"] * slot.pinned + [f"{_mib(adapters)} of it adapters"] * (adapters > 0)
    return f" ({', '.join(remarks)})" if remarks else ""


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"
