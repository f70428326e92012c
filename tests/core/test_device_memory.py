"""How much of the host's memory is free: of the machine, and of a container with a limit."""

import os

import pytest
import torch

from svd_core import device_memory

MEMINFO = "MemTotal:       24684092 kB\nMemFree:        15781288 kB\nMemAvailable:   20971520 kB\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Writes what a system says, by name of the file."""
    monkeypatch.setattr(device_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(device_memory, "CGROUP", tmp_path)
    monkeypatch.delattr(os, "sysconf", raising=False)

    def say(**files):
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)

    return say


def test_the_machines_available_memory_counts(system):
    system(meminfo=MEMINFO)
    assert device_memory.free_host_bytes() == 20 * 2**30


def test_a_containers_limit_counts_where_it_is_less_and_files_that_were_read_are_free(system):
    system(meminfo=MEMINFO, memory_max="8000\n", memory_current="6000\n", memory_stat="file 3500\nshmem 500\n")
    assert device_memory.free_host_bytes() == 5000
    system(memory_current="9000\n", memory_stat="file 0\n")
    assert device_memory.free_host_bytes() == 0
    system(memory_max="max\n")
    assert device_memory.free_host_bytes() == 20 * 2**30


def test_a_system_that_says_nothing_sets_no_limit(system):
    assert device_memory.free_host_bytes() is None
    assert device_memory.spare_bytes(torch.device("cpu")) is None


def test_without_linux_half_of_what_is_built_in_counts(system, monkeypatch):
    sizes = {"SC_PHYS_PAGES": 4 * 2**20, "SC_PAGE_SIZE": 2**12}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__, raising=False)
    assert device_memory.free_host_bytes() == 8 * 2**30


def test_activations_may_take_a_share_of_it(system):
    system(meminfo=MEMINFO)
    assert device_memory.spare_bytes(torch.device("cpu")) == int(device_memory.USABLE * 20 * 2**30)
    assert device_memory.spare_bytes(torch.device("mps")) == device_memory.spare_bytes(torch.device("cpu"))


@pytest.mark.skipif(not device_memory.MEMINFO.is_file(), reason="this system has no /proc/meminfo")
def test_this_machine_says_what_is_available():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < device_memory._of_machine() < total
    assert device_memory._of_machine() != total // 2
