"""Install torch into the running interpreter's environment, without CUDA on machines without a GPU.

On Linux the default torch wheel depends on gigabytes of CUDA libraries, which are useless without a GPU. This script
therefore installs a suitable build first; packages that are installed later use it.

    python scripts/install_torch.py           # install torch unless it is installed
    python scripts/install_torch.py --guard   # fail if CUDA packages are present without a GPU
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from importlib import metadata
from typing import Any

ACCEPTED = "torch>=2.11,<3"  # the range that sie-server declares
CPU_BUILD = "torch==2.13.0"  # the CPU wheel on machines that are prepared with one (pip's find-links)
CUDA_PACKAGE = re.compile(r"^(nvidia|cuda|triton)(-|$)")

FAILURE = f"""\
Could not install a CPU build of torch.
This machine has no NVIDIA GPU, so the default build with its gigabytes of CUDA libraries was not installed.
Install a CPU build and run the command again; the installer keeps an existing torch:
    .venv/bin/python -m pip install --find-links <folder with a CPU wheel> "{ACCEPTED}"
"""


class Plan(Enum):
    NOTHING = "torch is already installed"
    DEFAULT = "the registry's default build"
    PINNED = "the CPU build pip can see"
    UV = "a CPU build, chosen by uv"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def cuda_packages(names: Iterable[str]) -> list[str]:
    return sorted({name for name in map(canonical, names) if CUDA_PACKAGE.match(name)})


def is_cuda_free(report: Mapping[str, Any]) -> bool:
    """Return whether pip's installation report contains torch, and no GPU build or CUDA package."""
    versions = {canonical(r["metadata"]["name"]): r["metadata"]["version"] for r in report.get("install", [])}
    if "torch" not in versions or cuda_packages(versions):
        return False
    _, _, local = versions["torch"].partition("+")
    return local in ("", "cpu")  # +cu130, +rocm… are GPU builds even without CUDA requirements


def needs_report(*, importable: bool, gpu: bool, system: str) -> bool:
    return not importable and not gpu and system == "Linux"


def decide(*, importable: bool, gpu: bool, system: str, report: Mapping[str, Any] | None) -> Plan:
    if importable:
        return Plan.NOTHING
    if not needs_report(importable=importable, gpu=gpu, system=system):
        return Plan.DEFAULT  # there is a GPU, or the system's default build has no CUDA
    return Plan.PINNED if report is not None and is_cuda_free(report) else Plan.UV


def is_importable() -> bool:
    # Imported in a child process, so that a broken torch counts as missing and cannot end this process.
    return subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0


def lists_a_gpu(listing: str) -> bool:
    return any(line.startswith("GPU ") for line in listing.splitlines())


def has_gpu() -> bool:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and lists_a_gpu(done.stdout)


def pip(*arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    return subprocess.run(command, capture_output=capture, text=True)


def dry_run(requirement: str) -> Mapping[str, Any] | None:
    """Return pip's report on a trial installation, or None if pip fails."""
    done = pip("install", "--dry-run", "--report", "-", requirement, capture=True)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        return None
    return report if done.returncode == 0 and isinstance(report, dict) else None


def install_with_uv() -> bool:
    """Install a CPU build with uv, which knows where torch publishes them."""
    if pip("install", "uv").returncode != 0:
        return False
    command = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    return subprocess.run([*command, "--torch-backend=cpu", ACCEPTED]).returncode == 0


def carry_out(plan: Plan) -> bool:
    match plan:
        case Plan.NOTHING:
            return True
        case Plan.DEFAULT:
            return pip("install", ACCEPTED).returncode == 0
        case Plan.PINNED:
            return pip("install", CPU_BUILD).returncode == 0
        case Plan.UV:
            return install_with_uv()


def install() -> int:
    importable, gpu, system = is_importable(), has_gpu(), platform.system()
    report = dry_run(CPU_BUILD) if needs_report(importable=importable, gpu=gpu, system=system) else None
    plan = decide(importable=importable, gpu=gpu, system=system, report=report)
    if plan is not Plan.NOTHING:
        print(f"torch: installing {plan.value} (one to three minutes the first time)", flush=True)
    if carry_out(plan):
        return 0
    print("pip could not install torch.\n" if plan is Plan.DEFAULT else FAILURE, end="", file=sys.stderr)
    return 1


def guard() -> int:
    """Check, as the last step of every installation, that no package has installed CUDA libraries."""
    names = [
        name for name in cuda_packages(d.name for d in metadata.distributions()) if name.startswith("nvidia-")
    ]
    if not names or has_gpu():
        return 0
    print(f"CUDA packages were installed on a machine without a GPU: {', '.join(names)}", file=sys.stderr)
    print("Remove .venv and install again.", file=sys.stderr)
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Install torch, without CUDA where there is no GPU.")
    parser.add_argument(
        "--guard", action="store_true", help="only check that no CUDA package is installed without a GPU"
    )
    return guard() if parser.parse_args().guard else install()


if __name__ == "__main__":
    sys.exit(main())
