"""The fake device itself: what the other tests rest on."""

import pytest
import torch
import torch_npu

from fake_npu.device import active, host_view

pytestmark = pytest.mark.npu


def test_copies_to_the_device_and_back():
    x = torch.arange(8.0)
    assert x.npu().device == torch.device("npu", 0)
    assert torch.equal(x.npu().view(2, 4).t().contiguous().cpu(), x.view(2, 4).t())
    on_device = x.npu()
    on_device.cpu().zero_()
    assert torch.equal(on_device.cpu(), x)


def test_in_place_operators_and_views_share_memory():
    x = torch.zeros(4).npu()
    x[1:3].add_(5)
    assert x.cpu().tolist() == [0, 5, 5, 0]


def test_new_memory_is_poisoned():
    assert torch.empty(3, device="npu").cpu().isnan().all()
    assert host_view(torch.empty(2, 2, device="npu", dtype=torch.bfloat16)).isnan().all()


def test_calls_are_listed_and_backward_goes_through_torch_npus_own_node():
    active().calls.clear()
    x = torch.randn(3, 8).npu().requires_grad_()
    torch_npu.npu_swiglu(x).sum().backward()
    fused = [call for call in active().calls if call.startswith("npu::")]
    assert fused == ["npu::npu_swiglu", "npu::npu_swiglu_backward"]


def test_operator_nobody_wrote_is_an_error():
    with pytest.raises(NotImplementedError, match=r"the fake NPU has no npu\.npu_fast_gelu"):
        torch_npu.npu_fast_gelu(torch.ones(3).npu())


def test_wrong_keyword_is_refused_by_the_real_schema():
    with pytest.raises(RuntimeError, match="eps"):
        torch_npu.npu_rms_norm(torch.ones(2, 4).npu(), torch.ones(4).npu(), eps=1e-6)


def test_network_trains_on_the_device_as_on_the_cpu():
    losses = {}
    for device in ("cpu", "npu"):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.GELU(), torch.nn.Linear(9, 1))
        x = torch.randn(16, 6)
        net, x, y = net.to(device), x.to(device), x.sum(1, keepdim=True).to(device)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        losses[device] = []
        for _ in range(5):
            loss = torch.nn.functional.mse_loss(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[device].append(loss.item())
    assert losses["npu"] == pytest.approx(losses["cpu"], abs=1e-6)
    assert losses["npu"][-1] < losses["npu"][0]
