"""The installer chooses a build of torch. The reports are those of pip, reduced to the relevant fields."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import install_torch
from install_torch import Plan


def report(**versions: str) -> dict[str, Any]:
    packages = [{"metadata": {"name": n.replace("_", "-"), "version": v}} for n, v in versions.items()]
    return {"version": "1", "install": packages}


CPU = report(torch="2.13.0+cpu", sympy="1.14.0", filelock="4.2.11")
CUDA = report(torch="2.13.0", sympy="1.14.0", nvidia_cudnn_cu13="9.26.0.51", triton="3.9.0")


@pytest.mark.parametrize(
    ("seen", "free"),
    [
        (CPU, True),
        (report(torch="2.13.0", sympy="1.14.0"), True),  # a default build without CUDA packages
        (CUDA, False),
        (report(torch="2.13.0", cuda_toolkit="13.2.2"), False),
        (report(torch="2.13.0", triton="3.9.0"), False),
        (report(torch="2.13.0", NVIDIA_cublas="13.4"), False),  # names are compared in canonical form
        (report(torch="2.13.0+cu130"), False),  # a GPU build that bundles its libraries
        (report(torch="2.13.0+rocm7.0"), False),
        (report(sympy="1.14.0"), False),  # no torch at all
        ({}, False),
    ],
)
def test_cuda_is_recognised_in_a_report(seen: dict[str, Any], free: bool) -> None:
    assert install_torch.is_cuda_free(seen) is free


@pytest.mark.parametrize(
    ("importable", "gpu", "system", "seen", "plan"),
    [
        (True, False, "Linux", None, Plan.NOTHING),
        (True, True, "Linux", CUDA, Plan.NOTHING),
        (False, True, "Linux", None, Plan.DEFAULT),
        (False, False, "Darwin", None, Plan.DEFAULT),
        (False, False, "Windows", None, Plan.DEFAULT),
        (False, False, "Linux", CPU, Plan.PINNED),
        (False, False, "Linux", CUDA, Plan.UV),
        (False, False, "Linux", None, Plan.UV),  # pip returned no report
    ],
)
def test_plan(importable: bool, gpu: bool, system: str, seen: dict[str, Any] | None, plan: Plan) -> None:
    assert install_torch.decide(importable=importable, gpu=gpu, system=system, report=seen) is plan


def test_names_that_only_resemble_cuda_packages_are_left_alone() -> None:
    names = ["tritonclient", "cudatext", "pynvidia", "Triton", "nvidia.cublas", "cuda_bindings"]
    assert install_torch.cuda_packages(names) == ["cuda-bindings", "nvidia-cublas", "triton"]


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        ("GPU 0: NVIDIA H200 (UUID: GPU-0)\n", True),
        ("No devices found.\n", False),
        ("", False),
    ],
)
def test_gpu_listing(listing: str, found: bool) -> None:
    assert install_torch.lists_a_gpu(listing) is found


class FakeDistribution:
    def __init__(self, name: str) -> None:
        self.name = name


@pytest.mark.parametrize(
    ("names", "gpu", "code"),
    [
        (["torch", "numpy"], False, 0),
        (["torch", "nvidia-cublas"], False, 1),
        (["torch", "nvidia_cublas"], False, 1),
        (["torch", "nvidia-cublas"], True, 0),
    ],
)
def test_guard(names: list[str], gpu: bool, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_torch.metadata, "distributions", lambda: map(FakeDistribution, names))
    monkeypatch.setattr(install_torch, "has_gpu", lambda: gpu)
    assert install_torch.guard() == code


def test_failure_is_one_helpful_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install_torch, "is_importable", lambda: False)
    monkeypatch.setattr(install_torch, "has_gpu", lambda: False)
    monkeypatch.setattr(install_torch.platform, "system", lambda: "Linux")
    monkeypatch.setattr(install_torch, "dry_run", lambda requirement: CUDA)
    monkeypatch.setattr(install_torch, "carry_out", lambda plan: plan is not Plan.UV)
    assert install_torch.install() == 1
    assert capsys.readouterr().err == install_torch.FAILURE


def test_running_interpreter_is_the_one_installed_into(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def record(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return install_torch.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(install_torch.subprocess, "run", record)
    assert all(install_torch.carry_out(plan) for plan in Plan)
    assert {command[0] for command in commands} == {sys.executable}
    assert "--torch-backend=cpu" in commands[-1]
