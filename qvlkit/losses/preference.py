"""Losses of preference pairs, from log-probabilities of whole answers under the policy and under the reference.

Shapes: n pairs; a column for the chosen answer, then one for the rejected. With r = log pi(y) - log pi_ref(y), summed
over an answer's tokens, the reward of an answer is beta * r, and the margin is that of the chosen answer minus that of
the rejected.

    DPOLoss                    -log sigmoid(margin)                  arXiv 2305.18290, equation 7
    CDPOLoss                   the same with a share of the labels flipped: E. Mitchell, A note on DPO with noisy
                               preferences, 2023
    HingeLoss                  max(0, 1 - margin)                    SLiC-HF, arXiv 2305.10425, in DPO's terms
    IPOLoss                    (r difference - 1 / (2 beta))^2       arXiv 2310.12036, equation 17
    LengthNormalizedDPOLoss    DPO on the mean r of a token          as in Tulu 3, arXiv 2411.15124
    PlusSFT                    any of them + the chosen answer's negative log-likelihood, mean over its tokens:
                               RPO, arXiv 2404.19733, section 2.3
"""
import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from qvlkit.registry import LOSSES


class PreferenceLoss:
    """What the losses share.

    Args:
        beta: How strongly the policy is held to the reference; the scale of rewards.
    """

    def __init__(self, beta: float = 0.1):
        self.beta = _number('beta', beta, above=0.0)

    def rewards(self, policy: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Implicit reward of each answer (n, 2); arguments as for a call."""
        return self.beta * (policy - reference)

    def __call__(self, policy: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Summed log-probabilities (n, 2) of both, lengths of the answers in tokens (n, 2) -> losses (n,)."""
        raise NotImplementedError

    def _margins(self, *arguments: torch.Tensor) -> torch.Tensor:
        chosen, rejected = self.rewards(*arguments).unbind(1)
        return chosen - rejected


@LOSSES.register_module()
class DPOLoss(PreferenceLoss):
    """-log sigmoid(margin)."""

    def __call__(self, policy: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return -F.logsigmoid(self._margins(policy, reference, lengths))


@LOSSES.register_module()
class CDPOLoss(PreferenceLoss):
    """DPO where a share of the labels is taken to be wrong.

    Args:
        beta: As for DPO.
        label_smoothing: That share, below one half; 0 is DPO.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.1):
        super().__init__(beta)
        self.label_smoothing = _number('label_smoothing', label_smoothing, least=0.0, below=0.5)

    def __call__(self, policy: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        margins, flipped = self._margins(policy, reference, lengths), self.label_smoothing
        return -(1 - flipped) * F.logsigmoid(margins) - flipped * F.logsigmoid(-margins)


@LOSSES.register_module()
class HingeLoss(PreferenceLoss):
    """max(0, 1 - margin)."""

    def __call__(self, policy: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return torch.relu(1 - self._margins(policy, reference, lengths))


@LOSSES.register_module()
class IPOLoss(PreferenceLoss):
    """Squared distance of the difference of r from 1 / (2 beta).

    Args:
        beta: tau of the paper.
        per_token: r is the mean over an answer's tokens, as in the paper's experiments; False sums, as its equation 17
            does, so that the loss grows with the answers' lengths.
    """

    def __init__(self, beta: float = 0.1, *, per_token: bool = True):
        super().__init__(beta)
        self.per_token = per_token

    def rewards(self, policy: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Implicit reward of each answer (n, 2), of a token if `per_token`."""
        ratios = policy - reference
        return self.beta * (ratios / lengths if self.per_token else ratios)

    def __call__(self, policy: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return (self._margins(policy, reference, lengths) / self.beta - 1 / (2 * self.beta)).square()


@LOSSES.register_module()
class LengthNormalizedDPOLoss(PreferenceLoss):
    """DPO on mean log-probabilities of a token, so that long answers weigh no more than short ones. Its beta is larger
    than DPO's by about an answer's length."""

    def __init__(self, beta: float = 5.0):
        super().__init__(beta)

    def rewards(self, policy: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Implicit reward of an answer's token (n, 2)."""
        return self.beta * (policy - reference) / lengths

    def __call__(self, policy: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return -F.logsigmoid(self._margins(policy, reference, lengths))


@LOSSES.register_module()
class PlusSFT:
    """Another loss, and the chosen answer's negative log-likelihood: keeps the chosen answer itself likely.

    Args:
        loss: Config or object of the preference loss.
        weight: Of the mean negative log-probability of the chosen answer's tokens.
    """

    def __init__(self, loss: dict | Callable, weight: float = 1.0):
        self.loss = LOSSES.build(loss, config_key='trainer.loss.loss') if isinstance(loss, dict) else loss
        self.weight = _number('weight', weight, least=0.0)

    def rewards(self, policy: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Those of the preference loss."""
        return self.loss.rewards(policy, reference, lengths)

    def __call__(self, policy: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.loss(policy, reference, lengths) - self.weight * policy[:, 0] / lengths[:, 0]


def _number(name: str, value: float, *, above: float = -math.inf, least: float = -math.inf,
            below: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (
            above < value < below and value >= least):
        limits = [f'{word} {limit:g}' for word, limit in (('above', above), ('at least', least), ('below', below))
                  if math.isfinite(limit)]
        raise ValueError(f'loss.{name}: expected a number {" and ".join(limits)}, got {value!r}')
    return float(value)
