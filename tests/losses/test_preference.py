"""Each preference loss against its formula written out for one pair, and against TRL's on the same log-probabilities.

Shapes: n pairs; columns chosen, rejected.
"""
import math
import types
from collections import defaultdict
from unittest import mock

import pytest
import torch

from qvlkit.losses.preference import (
    CDPOLoss,
    DPOLoss,
    HingeLoss,
    IPOLoss,
    LengthNormalizedDPOLoss,
    PlusSFT,
)
from qvlkit.registry import LOSSES

BETA = 0.3


def numbers(seed=0, pairs=6):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (pairs, 2), generator=generator)
    policy, reference = (-lengths * torch.rand(pairs, 2, generator=generator, dtype=torch.float64) * 3
                         for _ in range(2))
    return policy, reference, lengths


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def by_hand(name, policy, reference, lengths):
    """One pair, in Python floats."""
    chosen, rejected = policy[0] - reference[0], policy[1] - reference[1]
    mean_chosen, mean_rejected = chosen / lengths[0], rejected / lengths[1]
    dpo = -log_sigmoid(BETA * (chosen - rejected))
    return {
        'dpo': dpo,
        'cdpo': 0.8 * dpo - 0.2 * log_sigmoid(-BETA * (chosen - rejected)),
        'hinge': max(0.0, 1 - BETA * (chosen - rejected)),
        'ipo': (mean_chosen - mean_rejected - 1 / (2 * BETA)) ** 2,
        'ipo_sum': (chosen - rejected - 1 / (2 * BETA)) ** 2,
        'normalized': -log_sigmoid(BETA * (mean_chosen - mean_rejected)),
        'plus_sft': dpo - 0.7 * policy[0] / lengths[0]}[name]


LOSS = dict(dpo=DPOLoss(BETA), cdpo=CDPOLoss(BETA, 0.2), hinge=HingeLoss(BETA), ipo=IPOLoss(BETA),
            ipo_sum=IPOLoss(BETA, per_token=False), normalized=LengthNormalizedDPOLoss(BETA),
            plus_sft=PlusSFT(dict(type='DPOLoss', beta=BETA), 0.7))


@pytest.mark.parametrize('name', list(LOSS))
def test_each_loss_is_its_formula(name):
    arguments = numbers()
    found = LOSS[name](*arguments).tolist()
    expected = [by_hand(name, *row) for row in zip(*(argument.tolist() for argument in arguments))]
    assert found == pytest.approx(expected, rel=1e-12)
    assert len({round(value, 6) for value in found}) > 1


@pytest.mark.parametrize('name', list(LOSS))
def test_a_likelier_chosen_answer_costs_less(name):
    """Where training begins: at the reference."""
    reference, _, lengths = numbers()
    policy = reference.clone().requires_grad_()
    gradient, = torch.autograd.grad(LOSS[name](policy, reference, lengths).sum(), policy)
    assert (gradient[:, 0] < 0).all() and (gradient[:, 1] > 0).all()


def test_rewards_are_those_of_the_loss():
    policy, reference, lengths = numbers()
    ratios = policy - reference
    torch.testing.assert_close(LOSS['dpo'].rewards(policy, reference, lengths), BETA * ratios)
    torch.testing.assert_close(LOSS['plus_sft'].rewards(policy, reference, lengths), BETA * ratios)
    for name in ('normalized', 'ipo'):
        torch.testing.assert_close(LOSS[name].rewards(policy, reference, lengths), BETA * ratios / lengths)


@pytest.mark.parametrize('loss, message', [
    (dict(type='DPOLoss', beta=0), r'loss\.beta: expected a number above 0, got 0'),
    (dict(type='CDPOLoss', label_smoothing=0.5), 'expected a number at least 0 and below 0.5, got 0.5'),
    (dict(type='PlusSFT', loss=dict(type='DPOLoss'), weight=-1.0), 'loss.weight: expected a number at least 0'),
    (dict(type='PlusSFT', loss=dict(type='DPOLos')), "trainer.loss.loss.type.*did you mean 'DPOLoss'"),
    (dict(type='HingeLoss', beta='x'), "got 'x'")])
def test_bad_settings_are_named(loss, message):
    with pytest.raises(ValueError, match=message):
        LOSSES.build(loss, config_key='trainer.loss')


class TheirModel:
    """Stands where TRL expects a model: gives back log-probabilities of tokens."""
    training = True

    def __init__(self, log_probabilities):
        self.log_probabilities = log_probabilities

    def __call__(self, **_):
        zeros = torch.zeros_like(self.log_probabilities)
        return types.SimpleNamespace(log_probs=self.log_probabilities, entropy=zeros, mean_logits=zeros,
                                     is_top1=zeros.bool())


def trl_loss(policy, reference, lengths, **settings):
    """TRL's loss of a batch, from its trainer's own function; answers follow a prompt of two tokens."""
    trl = pytest.importorskip('trl')
    if not hasattr(trl.DPOTrainer, '_compute_loss'):
        pytest.skip('this TRL keeps its loss elsewhere')
    flat, count = lengths.T.flatten(), int(lengths.max())  # chosen answers, then rejected ones
    places = torch.arange(2 + count)[None]
    completion_mask = ((places >= 2) & (places < 2 + flat[:, None])).long()
    shifted = completion_mask[:, 1:]
    tokens = [torch.where(shifted > 0, (sums.T.flatten() / flat)[:, None].expand_as(shifted), 0.0)
              for sums in (policy, reference)]
    accelerator = types.SimpleNamespace(device='cpu', gather_for_metrics=lambda x: x, gather=lambda x: x)
    trainer = types.SimpleNamespace(
        model=TheirModel(tokens[0]), ref_model=TheirModel(tokens[1]), accelerator=accelerator, beta=BETA,
        aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=False, f_divergence_type='reverse_kl',
        use_weighting=False, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None),
        **{'label_smoothing': 0.0, 'loss_weights': [1.0], **settings})
    with mock.patch('trl.trainer.dpo_trainer.is_peft_model', return_value=False), mock.patch(
            'trl.trainer.dpo_trainer.disable_gradient_checkpointing', return_value=mock.MagicMock()):
        return trl.DPOTrainer._compute_loss(trainer, trainer.model, dict(
            input_ids=torch.zeros_like(completion_mask), attention_mask=torch.ones_like(completion_mask),
            completion_mask=completion_mask), False)


@pytest.mark.parametrize('name, settings', [
    ('dpo', dict(loss_types=['sigmoid'])), ('hinge', dict(loss_types=['hinge'])), ('ipo', dict(loss_types=['ipo'])),
    ('normalized', dict(loss_types=['sigmoid_norm']))])
def test_the_mean_loss_is_that_of_trl(name, settings):
    arguments = numbers(seed=1)
    expected = trl_loss(*arguments, **settings)
    torch.testing.assert_close(LOSS[name](*arguments).mean(), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize('name, settings', [
    ('cdpo', dict(loss_types=['aot_unpaired'], label_smoothing=0.2)),  # it smooths labels; one pair is sorted already
    ('plus_sft', dict(loss_types=['sigmoid', 'sft'], loss_weights=[1.0, 0.7]))])
def test_the_loss_of_one_pair_is_that_of_trl(name, settings):
    arguments = numbers(seed=2, pairs=1)
    expected = trl_loss(*arguments, **settings)
    torch.testing.assert_close(LOSS[name](*arguments).mean(), expected, atol=1e-10, rtol=1e-10)
