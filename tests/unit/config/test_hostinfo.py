"""How many processors there are for this process: its affinity, and the quota of its container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from greenq import hostinfo

SEEN = os.sched_getaffinity(0)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host of 64 processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))


def test_without_a_quota_it_is_the_affinity(tmp_path: Path) -> None:
    assert hostinfo.cpus(tmp_path) == len(SEEN)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("max 100000", 64),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("250000 100000", 3),
        ("9900000 100000", 64),
        ("rubbish", 64),
    ],
)
def test_a_quota_of_version_2_counts_rounded_up(tmp_path: Path, text: str, cpus: int) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/kubepods/pod1/c1\n")
    write(tmp_path / "sys/fs/cgroup/kubepods/pod1/c1/cpu.max", text)
    assert hostinfo.cpus(tmp_path) == cpus


@pytest.mark.usefixtures("many")
def test_the_narrowest_of_the_groups_above_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "max 100000")
    write(tmp_path / "sys/fs/cgroup/a/cpu.max", "200000 100000")
    write(tmp_path / "sys/fs/cgroup/a/b/cpu.max", "400000 100000")
    assert hostinfo.cpus(tmp_path) == 2


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(("quota", "cpus"), [("-1", 64), ("150000", 2)])
def test_a_quota_of_version_1_counts_too(tmp_path: Path, quota: str, cpus: int) -> None:
    # In a container the path is often the host's, which is not there to be seen.
    write(tmp_path / "proc/self/cgroup", "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n")
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", quota)
    write(tmp_path / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    assert hostinfo.cpus(tmp_path) == cpus


@pytest.mark.usefixtures("many")
def test_the_affinity_is_never_exceeded_and_one_is_the_least(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "1000 100000")
    assert hostinfo.cpus(tmp_path) == 1
