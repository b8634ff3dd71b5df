"""Where there is no GPU: every aggregator's code for CUDA, on tensors without memory (`pretend.py`)."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import qgmil

HERE, TORCH = Path(__file__).parent, Path(torch.__file__).parent
CASES = [f"{name} {kind}" for name in [*qgmil.list_models(), "qgmil, clusters"] for kind in ("32", "bf16")]

#: What raises on CUDA under `torch.use_deterministic_algorithms`, which training switches on there (its documentation
#: lists them by function; these are the operators). Some do so for some arguments only, and are no loss.
NOT_DETERMINISTIC = (
    "aten._adaptive_avg_pool",
    "aten._ctc_loss",
    "aten._embedding_bag",
    "aten.adaptive_max_pool",
    "aten.avg_pool3d",
    "aten.cumsum",
    "aten.fractional_max_pool",
    "aten.grid_sampler",
    "aten.histc",
    "aten.kthvalue",
    "aten.max_pool3d",
    "aten.max_unpool",
    "aten.median",
    "aten.nll_loss2d",
    "aten.put",
    "aten.reflection_pad",
    "aten.replication_pad",
    "aten.scatter_reduce",
    "aten.upsample",
)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `pretend.py` found, by model and precision."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    built_for_gpu = torch.version.cuda is not None or torch.version.hip is not None
    if shutil.which(compiler[0]) is None or not sys.platform.startswith("linux") or built_for_gpu:
        pytest.skip("needs a C++ compiler on Linux, and PyTorch without CUDA (with it, there are the gpu tests)")
    compiler += ["-std=c++20", "-fPIC", f"-I{TORCH / 'include'}"]
    probe = [*compiler, "-fsyntax-only", "-x", "c++", "-include", "c10/core/Device.h", "/dev/null"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip(f"{compiler[0]} does not compile PyTorch's headers")
    library = tmp_path_factory.mktemp("pretended") / "pretend.so"
    command = [*compiler, "-shared", str(HERE / "pretend.cpp"), "-o", str(library), f"-L{TORCH / 'lib'}"]
    built = subprocess.run([*command, "-lc10", "-ltorch_cpu"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{TORCH / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    command = [sys.executable, str(HERE / "pretend.py"), str(library)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", CASES)
def test_training_and_prediction_stay_on_the_device(case: str, steps: dict[str, Any]) -> None:
    assert "error" not in steps[case], steps[case]["error"]
    assert steps[case]["devices"] == ["cuda"]


@pytest.mark.parametrize("case", CASES)
def test_deterministic_training_has_a_kernel_for_every_operation(case: str, steps: dict[str, Any]) -> None:
    ran = steps[case].get("operations", [])
    assert ran
    assert [name for name in ran if name.startswith(NOT_DETERMINISTIC)] == []


@pytest.mark.parametrize("case", CASES)
def test_half_precision_takes_the_kernel_for_packed_bags(case: str, steps: dict[str, Any]) -> None:
    attends = case.startswith(("qgmil", "transformer")) and "clusters" not in case
    ran = {name for name in steps[case]["operations"] if "_varlen_attn" in name}
    expected = {"torch_attn._varlen_attn", "torch_attn._varlen_attn_backward"}
    assert ran == (expected if attends and case.endswith("bf16") else set())
