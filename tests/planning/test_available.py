"""Available memory is the least that the system, the control groups and the process's own limits leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qgmil.planning import available
from qgmil.planning.available import available_memory, process_memory

GB = 1024**3


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB available, no groups and no limits; gives the folder that stands for /."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: {16 * 1024**2} kB\nMemAvailable:  {8 * 1024**2} kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/user/job\n")
    monkeypatch.setattr(available, "PROC", tmp_path / "proc")
    monkeypatch.setattr(available, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_the_system_alone(machine: Path) -> None:
    assert available_memory("cpu") == 8 * GB


def test_a_container_of_version_2_and_the_groups_above_it(machine: Path) -> None:
    job = machine / "cgroup" / "user" / "job"
    group(job, memory__max="max", memory__current=GB)
    assert available_memory("cpu") == 8 * GB
    group(job.parent, memory__max=6 * GB, memory__current=3 * GB, memory__stat=f"anon 5\ninactive_file {GB}")
    assert available_memory("cpu") == 4 * GB  # what the group has cached of files is given up
    group(job, memory__max=2 * GB, memory__current=GB)
    assert available_memory("cpu") == GB
    group(job, memory__max=GB, memory__current=2 * GB)
    assert available_memory("cpu") == 0


def test_a_group_of_version_1(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("5:devices:/\n4:memory:/job\n0::/\n")
    folder = machine / "cgroup" / "memory" / "job"
    group(folder.parent, memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=GB)
    assert available_memory("cpu") == 8 * GB
    group(folder, memory__limit_in_bytes=5 * GB, memory__usage_in_bytes=3 * GB)
    group(folder, memory__stat=f"total_inactive_file {GB // 2}")
    assert available_memory("cpu") == 5 * GB // 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_limit_of_the_process_counts() -> None:
    code = (
        "import resource\n"
        "from qgmil.planning.available import available_memory, process_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))\n"
        "before = available_memory('cpu')\n"
        "import mmap; space = mmap.mmap(-1, 2**30)\n"
        "with open('/proc/self/status') as f: size = int(f.read().split('VmSize:')[1].split()[0]) * 1024\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 2**26, size + 2**26))\n"
        "print(before > 2**30, available_memory('cpu') <= 2**26, process_memory() > 2**26)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["True", "True", "True"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_here() -> None:
    assert (available_memory("cpu") or 0) > 2**27 and process_memory() > 2**26
