"""`python -m bench`: run the speed benchmarks, which take a few minutes."""

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
    """Run all benchmarks, each in its own process, so that threads and memory are not shared."""
    if sys.argv[1:]:
        sys.exit(
            f"python -m bench takes no arguments; run one benchmark, such as python -m {COMMANDS[0][0]} --help"
        )
    failed = []
    for module, *arguments in COMMANDS:
        print(f"\n── python -m {' '.join([module, *arguments])}", flush=True)
        if subprocess.run([sys.executable, "-m", module, *arguments]).returncode:
            failed.append(module)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
