"""One device: precision, the norm of all gradients, and an identity over ranks."""
import pytest
import torch
from torch import nn

from qvlkit.engine.strategies.single import SingleDevice


def test_precision_on_the_cpu():
    layer, inputs = nn.Linear(3, 3), torch.randn(2, 3)
    for precision, dtype in (('auto', torch.float32), ('fp32', torch.float32), ('bf16', torch.bfloat16)):
        strategy = SingleDevice(precision, device='cpu')
        with strategy.autocast():
            assert strategy.prepare(layer)(inputs).dtype == dtype == strategy.dtype
    with pytest.raises(ValueError, match="precision: .*'bf16'"):
        SingleDevice('bf61')


@pytest.mark.parametrize('max_norm', [None, 0.5, 1e6])
def test_clipping(max_norm):
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4)), nn.Parameter(torch.zeros(1))]
    for parameter in parameters[:2]:
        parameter.grad = torch.randn_like(parameter)
    before = [parameter.grad.clone() for parameter in parameters[:2]]
    norm = SingleDevice(device='cpu').clip_gradients(iter(parameters), max_norm)
    expected = torch.cat([grad.flatten() for grad in before]).norm()
    torch.testing.assert_close(norm, expected)
    scale = min(1.0, max_norm / expected) if max_norm else 1.0
    for parameter, grad in zip(parameters, before):
        torch.testing.assert_close(parameter.grad, grad * scale, rtol=1e-5, atol=1e-6)
    assert parameters[2].grad is None


def test_one_rank():
    strategy, tensor = SingleDevice(device='cpu'), torch.tensor(3)
    assert strategy.sum_over_ranks(tensor) is tensor
    assert (strategy.rank, strategy.world_size, strategy.is_main) == (0, 1, True)
