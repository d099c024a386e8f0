"""Everything that a GPU has to show, in one command of at most four minutes.

    python -m bench.gpu                        # or: make bench-gpu
    python -m bench.gpu --device cpu --tiny    # the same steps in small, to test them

Needs torch, transformers, tokenizers, safetensors, numpy and sentence-transformers, not the HTTP stack. Writes gpu.json
and gpu.md. The exit status is 1 if a family fails or differs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "bench" / "out"
SECONDS = 220.0
FOR_SPEED, FOR_PROFILE = 0.6, 0.08  # shares of the time that the parts before leave
TINY_FAMILIES = 2


def main() -> None:
    """Run the parts one after the other and write the reports."""
    arguments = _arguments()
    _prepare()
    import torch

    from sie_server.engine.device import pick_device

    try:
        pick_device(arguments.device)
    except ValueError as error:
        sys.exit(f"bench.gpu: {error}")
    if arguments.device == "cuda" or arguments.tiny:
        torch.set_num_threads(1)  # as the server does with a GPU
    found = measured(arguments.device, arguments.tiny, arguments.seconds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    from bench.gpu.families import fine
    from bench.gpu.report import markdown

    (arguments.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "gpu.md").write_text(markdown(found), encoding="utf-8")
    print(f"wrote gpu.json and gpu.md to {arguments.out}, {found['seconds']:.0f} s")
    if not all(fine(line) or line.get("error") == "not reached" for line in found["families"].values()):
        sys.exit("bench.gpu: a family fails or differs; see gpu.md")


def measured(device: str, tiny: bool, seconds: float) -> dict[str, Any]:
    """Run all parts and return their results by name."""
    from bench.gpu import families, probes, speed
    from bench.gpu.clock import Clock
    from bench.gpu.shapes import SHAPES

    start, clock = time.perf_counter(), Clock(seconds)
    found: dict[str, Any] = {"device": device, "probes": probes.probes(device)}
    print(json.dumps(found["probes"], indent=1), flush=True)
    shapes = (SHAPES[0].tiny, SHAPES[-1].tiny) if tiny else SHAPES
    most = TINY_FAMILIES if tiny else None
    found["families"] = families.parity(device, clock, FOR_SPEED * seconds, most)
    found["speed"] = speed.table(shapes, device, clock, tiny, FOR_PROFILE * seconds)
    if clock.left > 0:
        found["profile"] = speed.profile(shapes[0] if tiny else shapes[1], device, 12 if tiny else 1000)
    found["seconds"] = time.perf_counter() - start
    return found


def _prepare() -> None:
    """Find the packages of the tree and keep libraries quiet and offline, before they are imported."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    os.environ.update(quiet | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"})
    for part in ("packages/sie-server/src", "packages/sie-sdk/src", "tests", "."):
        if (path := str(ROOT / part)) not in sys.path:
            sys.path.insert(0, path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="two families and two small models")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument("--out", type=Path, default=OUT, help="directory of the reports")
    return parser.parse_args()


if __name__ == "__main__":
    main()
