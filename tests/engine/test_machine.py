"""The machine that this runs on: what is fast on it, and its name."""

import pytest
import torch

from engine.machine import device_name, fast_amp, processor

CPU = torch.device("cpu")


@pytest.mark.parametrize("capability, amp", [("AVX2", "none"), ("AVX512", "bf16")])
def test_bf16_is_fast_where_a_processor_has_it(capability, amp, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert fast_amp("cpu") == amp


@pytest.mark.parametrize("count, words", [(1, "1 thread"), (2, "2 threads")])
def test_a_processor_is_named_with_its_threads(count, words, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    assert device_name(CPU) == f"{processor()}, {words}"
    assert processor()
