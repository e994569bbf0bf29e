"""What a device can do at most: the one table of peaks.

Sources: NVIDIA's data sheets of the A100, H100 and H200 Tensor Core GPUs; dense matrix products, without sparsity.
"""
import torch

# Operations per second of bfloat16 matrix products, by words of the device's name; the first line that fits counts.
PEAK_BF16 = (
    (('H200', 'NVL'), 836e12),
    (('H200',), 989.5e12),
    (('H100', 'PCIe'), 756e12),
    (('H100', 'NVL'), 835.5e12),
    (('H100',), 989.5e12),
    (('A100',), 312e12),
)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations per second of matrix products on one device; None for a CPU, an unknown device, another type."""
    if device.type != 'cuda' or dtype != torch.bfloat16:
        return None
    return named_peak(torch.cuda.get_device_name(device))


def named_peak(name: str) -> float | None:
    """The same by the name that CUDA gives the device, in bfloat16."""
    return next((peak for words, peak in PEAK_BF16 if all(word.lower() in name.lower() for word in words)), None)
