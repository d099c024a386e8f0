"""How the threads that share a matrix product wait for each other. To be called before torch is imported."""

from __future__ import annotations

from collections.abc import MutableMapping

# Rounds of waiting before a thread gives its core up. As long as the gap between two operators of a forward pass, so an
# idle machine is as fast as with the library's own 300,000, which keep a core busy for about a millisecond each time.
SPINS = "3000"
ASKED = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def give_up_cores_soon(environment: MutableMapping[str, str]) -> None:
    """Let other threads have a core that would only wait; nothing where the operator has decided that.

    A server shares its cores: with its own HTTP thread, its tokenisers, its neighbours. Threads of a product that wait
    for one that has no core at the moment otherwise keep the others from getting on (libgomp, `GOMP_SPINCOUNT`,
    https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html).
    """
    if not any(name in environment for name in ASKED):
        environment["GOMP_SPINCOUNT"] = SPINS
