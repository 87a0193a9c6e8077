import pytest
import torch

from llm_infer.edge import device
from llm_infer.errors import InferError


def test_auto_is_the_first_found(monkeypatch):
    monkeypatch.setattr(device, "available", lambda: ["npu:0", "cpu"])
    assert device.resolve("auto") == "npu:0"
    assert device.resolve("cpu") == "cpu"


def test_a_device_that_is_not_there_is_an_error_that_lists_the_others(monkeypatch):
    monkeypatch.setattr(device, "available", lambda: ["cpu"])
    with pytest.raises(InferError, match="device cuda: not on this machine; found cpu"):
        device.resolve("cuda")


def test_cuda_comes_first_and_cpu_last(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "_npu", lambda: ["npu:0"])
    assert device.available() == ["cuda:0", "npu:0", "cpu"]
