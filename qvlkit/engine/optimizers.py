"""Optimizers: torch's own, with the arguments that a config states, and one of bitsandbytes.

Each takes parameters or groups of them; `lr` and `weight_decay` are for groups that have none of their own. Two class
attributes tell engine/optimizer.py and engine/optimizer_state.py what differs from AdamW:

    hidden_apart   whether it needs the matrices of the blocks in groups of their own, marked hidden=True
    other_shapes   entries of its state that have not the parameter's shape
"""
from collections.abc import Callable

import torch

from qvlkit.registry import OPTIMIZERS


@OPTIMIZERS.register_module()
class AdamW(torch.optim.AdamW):
    """torch's AdamW; its fused kernel where every parameter is on a CPU or a CUDA device, else torch's own choice.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate of groups that have none of their own.
        weight_decay: The same for the decay.
    """

    def __init__(self, params, *, lr: float, weight_decay: float = 0.0, betas=(0.9, 0.95), eps: float = 1e-8):
        params = list(params)
        flat = [p for item in params for p in (item['params'] if isinstance(item, dict) else [item])]
        fused = True if flat and all(p.device.type in ('cpu', 'cuda') and p.is_floating_point() for p in flat) else None
        super().__init__(params, lr=lr, weight_decay=weight_decay, betas=tuple(betas), eps=eps, fused=fused)


@OPTIMIZERS.register_module()
class SGD(torch.optim.SGD):
    """torch's SGD. Its weight decay is added to the gradient, unlike AdamW's.

    Args:
        params, lr, weight_decay: As for AdamW.
        momentum: Share of the step before.
        nesterov: Look one step ahead.
    """

    def __init__(self, params, *, lr: float, weight_decay: float = 0.0, momentum: float = 0.9, nesterov: bool = False):
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov)


@OPTIMIZERS.register_module()
class Adafactor(torch.optim.Adafactor):
    """torch's Adafactor (arXiv 1804.04235): of a matrix it keeps one row and one column of second moments.

    The step is lr * max(eps[1], root mean square of the parameter), so `lr` is a share of the weights: 1e-2 is usual.

    Args:
        params, lr, weight_decay: As for AdamW.
        beta2_decay: Exponent by which the memory of the second moments grows.
        eps: Least second moment (None: the type's own), and least scale of a parameter.
        clip: Root mean square to which an update is clipped.
    """
    other_shapes = frozenset({'row_var', 'col_var'})

    def __init__(self, params, *, lr: float, weight_decay: float = 0.0, beta2_decay: float = -0.8,
                 eps=(None, 1e-3), clip: float = 1.0):
        super().__init__(params, lr=lr, weight_decay=weight_decay, beta2_decay=beta2_decay, eps=tuple(eps), d=clip)


@OPTIMIZERS.register_module()
class Muon(torch.optim.Optimizer):
    """torch's Muon for the matrices of the blocks, AdamW for all else: embeddings, head, norms, biases.

    Sources: K. Jordan, Muon (2024); Muon is Scalable for LLM Training, arXiv 2502.16982, whose scale of the update
    ('match_rms_adamw') lets both take AdamW's learning rate and weight decay.

    Args:
        params: Groups; those with hidden=True are Muon's, and hold matrices.
        lr, weight_decay: As for AdamW.
        momentum, nesterov: Of Muon.
        newton_schulz_steps: Iterations that make an update orthogonal.
        adjust_lr: 'match_rms_adamw', or 'original' (times sqrt(max(1, rows / columns))).
        betas, eps: Of AdamW.
    """
    hidden_apart = True

    def __init__(self, params, *, lr: float, weight_decay: float = 0.0, momentum: float = 0.95, nesterov: bool = True,
                 newton_schulz_steps: int = 5, adjust_lr: str = 'match_rms_adamw', betas=(0.9, 0.95),
                 eps: float = 1e-8):
        groups = [dict(item) if isinstance(item, dict) else {'params': [item]} for item in params]
        for group in groups:
            group.setdefault('hidden', False)
        hidden = [group for group in groups if group['hidden']]
        others = [group for group in groups if not group['hidden']]
        self._muon = torch.optim.Muon(hidden, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov,
                                      ns_steps=newton_schulz_steps, adjust_lr_fn=adjust_lr) if hidden else None
        self._adamw = AdamW(others, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps) if others else None
        super().__init__(groups, {})  # the same dicts: a schedule that turns lr turns it for both

    def step(self, closure: Callable | None = None) -> torch.Tensor | None:
        """One step of both, on this object's groups and state."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer, hidden in ((self._muon, True), (self._adamw, False)):
            if optimizer is not None:
                optimizer.param_groups = [group for group in self.param_groups if group['hidden'] == hidden]
                optimizer.state = self.state
                optimizer.step()
        return loss


@OPTIMIZERS.register_module(name='AdamW8bit')
def adamw_8bit(params, *, lr: float, weight_decay: float = 0.0, betas=(0.9, 0.95),
               eps: float = 1e-8) -> torch.optim.Optimizer:
    """AdamW whose two moments are kept in 8 bits, in blocks of 256 values (arXiv 2110.02861); of bitsandbytes.

    Parameters of fewer than 4,096 values keep them in 32 bits.

    Args:
        params, lr, weight_decay, betas, eps: As for AdamW.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError("optimizer.type: 'AdamW8bit' needs the package bitsandbytes (pip install bitsandbytes), "
                         f'which cannot be imported here: {error}') from error
    optimizer = AdamW8bit(params, lr=lr, weight_decay=weight_decay, betas=tuple(betas), eps=eps)
    optimizer.other_shapes = frozenset({'qmap1', 'qmap2', 'absmax1', 'absmax2'})
    return optimizer
