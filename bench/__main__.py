"""`python -m bench`: the speed benchmarks one after the other, in a few minutes."""

from __future__ import annotations

import subprocess
import sys

COMMANDS = (
    ["bench.cross_encoders", "--rounds", "5"],
    ["bench.overhead"],
    ["bench.load", "--seconds", "10"],
    ["bench.load", "--mixed", "--seconds", "10"],
)


def main() -> None:
    """Run all, each in a process of its own so that none inherits another's threads and memory."""
    failed = []
    for module, *arguments in COMMANDS:
        print(f"\n── python -m {' '.join([module, *arguments])}", flush=True)
        if subprocess.run([sys.executable, "-m", module, *arguments]).returncode:
            failed.append(module)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
