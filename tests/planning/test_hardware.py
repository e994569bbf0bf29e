"""Peaks by the names that CUDA gives the devices."""
import pytest
import torch

from qvlkit.planning.hardware import named_peak, peak_flops


@pytest.mark.parametrize('name, peak', [
    ('NVIDIA H100 80GB HBM3', 989.5e12), ('NVIDIA H100 PCIe', 756e12), ('NVIDIA H100 NVL', 835.5e12),
    ('NVIDIA H200', 989.5e12), ('NVIDIA H200 NVL', 836e12), ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA A100 80GB PCIe', 312e12), ('NVIDIA GeForce RTX 4090', None)])
def test_peaks(name, peak):
    assert named_peak(name) == peak


def test_a_cpu_and_other_types_have_no_known_peak():
    assert peak_flops(torch.device('cpu'), torch.bfloat16) is None
    assert peak_flops(torch.device('cuda'), torch.float32) is None
