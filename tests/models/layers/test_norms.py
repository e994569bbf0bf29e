"""RMSNorm in every precision."""
import pytest
import torch

from qvlkit.models.layers.norms import RMSNorm


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
def test_unit_root_mean_square_times_a_weight(dtype, tolerance):
    norm = RMSNorm(16, eps=1e-6).to(dtype)
    x = 5 * torch.randn(3, 16, dtype=dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 16))
        expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        torch.testing.assert_close(norm(x), expected, atol=tolerance, rtol=tolerance)


def test_bfloat16_is_squared_in_float32_and_rounded_before_the_weight():
    norm = RMSNorm(64).to(torch.bfloat16)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 64))
        wide = x.float()
        expected = norm.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(torch.bfloat16)
        assert norm(x).dtype == torch.bfloat16
        assert torch.equal(norm(x), expected)
