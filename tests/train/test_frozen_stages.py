"""Frozen means frozen in every stage of the recipe: alone, with adapters elsewhere, and with either reference of DPO.

Of a frozen part nothing changes, neither parameters nor buffers; when the optimizer steps it has no gradient, and the
optimizer holds nothing of it; one at the front of the model keeps no activation. test_frozen.py asks the same of SFT.
"""
import itertools

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from qvlkit.config import load_config
from qvlkit.registry import DATASETS
from qvlkit.train.hooks.base import Hook
from qvlkit.train.recipe import build_stage, build_tokenizer

VLM, TOWERS = ('vision_encoder', 'merger', 'language_model'), ('vision_encoder', 'pooling', 'text_tower', 'temperature')
PARTS = {'contrastive': TOWERS, 'visual': VLM, 'multimodal': VLM, 'long_context': VLM, 'sft': VLM, 'dpo': VLM}
RECIPE = {'visual': ('language_model',), 'sft': ('vision_encoder',), 'dpo': ('vision_encoder',)}  # frozen in the config
FRONT = ('vision_encoder', 'text_tower')
SMALL = ['stages.contrastive.towers.text_tower.width=32', 'stages.contrastive.towers.width=24',
         'stages.contrastive.towers.text_tower.num_heads=2', 'stages.contrastive.towers.text_tower.depth=1']
LIVE, STORED = {'trainer': {'reference': 'live'}}, {'trainer': {'reference': 'stored'}}
TWO_ROWS, LATER = {'accumulation': 2}, {'trainable': [[0, False], [2, True]]}


def case(stage, frozen=None, adapted=(), more=None):
    """frozen: parts; None for what the recipe freezes."""
    frozen = RECIPE.get(stage, ()) if frozen is None else frozen
    name = f'{stage}: {"+".join(frozen) or "nothing"} frozen, {"+".join(adapted) or "nothing"} adapted, {more or ""}'
    return pytest.param(stage, frozen, adapted, more or {}, id=name.replace(' ', '_'))


FEW = [
    case('contrastive', ['vision_encoder'], more=TWO_ROWS), case('contrastive', ['text_tower'], ['vision_encoder']),
    case('contrastive', ['pooling'], ['text_tower'], TWO_ROWS), case('contrastive', ['temperature']),
    case('visual'), case('visual', adapted=['vision_encoder']), case('visual', ['merger']),
    case('visual', ['merger', 'language_model'], ['vision_encoder']),
    case('multimodal', ['vision_encoder', 'merger'], ['language_model']),
    case('multimodal', ['vision_encoder'], more=LATER), case('sft', adapted=['language_model', 'merger']),
    case('dpo', more=LIVE), case('dpo', more=STORED), case('dpo', ['merger'], more=LIVE),
    case('dpo', ['vision_encoder', 'merger'], ['language_model'], LIVE),
    case('dpo', ['vision_encoder'], ['language_model'], STORED),
    case('dpo', ['language_model'], ['vision_encoder'], LIVE)]
ALL = [case(stage, [frozen], adapted, more) for stage, parts in PARTS.items() for frozen in parts
       for adapted in [(), *([part] for part in parts if part not in (frozen, 'temperature', 'pooling'))]
       for more in ([LIVE, STORED] if stage == 'dpo' else [{}, TWO_ROWS] if stage == 'contrastive' else [{}])]
ALL += [case(stage, [frozen], more=LATER) for stage, parts in PARTS.items() for frozen in parts]


@pytest.fixture(scope='module')
def tokenizer(small_file):
    config = load_config(small_file, [])
    return build_tokenizer(config['tokenizer'], DATASETS.build(config['stages']['sft']['data'], config_key='data'))


@pytest.fixture
def build_any(small, tokenizer, tmp_path):
    """stage, frozen parts, adapted parts, more settings -> trainer of two steps with much weight decay."""
    def make(stage, frozen, adapted, more):
        config = small(*SMALL)
        more = dict(more)
        settings = config['stages'][stage]
        settings['parts'] = {part: {'trainable': more.get('trainable', False)} for part in frozen}
        if adapted:
            settings['lora'] = {'parts': list(adapted), 'rank': 2}
        settings['trainer'] = {**settings['trainer'], **more.get('trainer', {})}
        settings.update(hooks={}, max_steps=2, accumulation=more.get('accumulation', 1),
                        optimizer={**settings['optimizer'], 'weight_decay': 0.5},
                        loader={**settings['loader'], 'window': 12, 'num_workers': 0})
        settings['loader']['row_length'] = 320
        if stage == 'long_context':
            for part in ('long', 'text'):
                settings['data']['parts'][part]['dataset']['sentences'] = [2, 6]
        if stage == 'dpo':
            settings['data'] = {'type': 'PicturePairs', 'size': 24}
        trainer = build_stage(config, stage, tmp_path / stage, tokenizer=tokenizer)
        for part in frozen:
            getattr(trainer.model, part).register_buffer('tally', torch.zeros(3))
        return trainer
    return make


class Watch(Hook):
    """Which parameters have a gradient when the optimizer steps, and how many tensors parts at the front have kept."""

    def __init__(self, trainer):
        self.reached, self.kept = set(), dict.fromkeys(FRONT, 0)
        for part in FRONT:
            if hasattr(trainer.model, part):
                self._count(part, getattr(trainer.model, part))

    def _count(self, part, module):
        forward = module.forward

        def keep(tensor):
            self.kept[part] += 1
            return tensor

        def counted(*arguments, **settings):
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                return forward(*arguments, **settings)
        module.forward = counted

    def before_optimizer_step(self, trainer):
        self.reached |= {name for name, p in trainer.model.named_parameters() if p.grad is not None}


def tensors_of(model):
    return {name: value.clone() for name, value in itertools.chain(model.named_parameters(), model.named_buffers())}


def part_of(name):
    return name.partition('.')[0]


def check(trainer, frozen, adapted, watch):
    before = tensors_of(trainer.model)
    trainer.fit()
    after = tensors_of(trainer.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trains = set(trainer.model.parts()) - set(frozen)
    assert {part_of(name) for name in changed} == {part_of(name) for name in watch.reached} == trains - {
        part for part in trains if not any(True for _ in getattr(trainer.model, part).parameters())}
    for name in changed | watch.reached:  # of an adapted part the base is frozen as well
        assert part_of(name) not in adapted or 'lora_' in name, name
    for part in adapted:
        assert any(part_of(name) == part for name in changed)
    for name, parameter in trainer.model.named_parameters():
        still = part_of(name) in frozen or part_of(name) in adapted and 'lora_' not in name
        assert bool(trainer.optimizer.state.get(parameter)) != still, name
    for part in frozen:
        assert not getattr(trainer.model, part).training
    for part in FRONT:
        if hasattr(trainer.model, part):
            assert (watch.kept[part] == 0) == (part in frozen), part


def run_case(build_any, stage, frozen, adapted, more):
    trainer = build_any(stage, frozen, adapted, more)
    trainer.hooks = [watch := Watch(trainer)]
    live = getattr(trainer, 'live', None)
    start = {} if live is None else tensors_of(live.model)
    if live is not None:  # with adapters alone the reference is the model without them, and no copy
        whole = {part for part in VLM if part not in adapted and part not in frozen or more is LATER}
        assert set(live.copies) == whole
    check(trainer, frozen, adapted, watch)
    copied = tuple(f'{part}.' for part in live.copies) if live is not None else ()
    for name, value in tensors_of(live.model).items() if live is not None else ():
        assert 'lora_' in name or torch.equal(value, start[name]), name
        assert not name.startswith(copied or '-') or value.grad is None


@pytest.mark.parametrize('stage, frozen, adapted, more', FEW)
def test_a_frozen_part_stays_whatever_the_stage(build_any, stage, frozen, adapted, more):
    run_case(build_any, stage, frozen, adapted, more)


@pytest.mark.acceptance
@pytest.mark.parametrize('stage, frozen, adapted, more', ALL)
def test_every_part_of_every_stage_frozen_in_turn(build_any, stage, frozen, adapted, more):
    run_case(build_any, stage, frozen, adapted, more)


def test_what_is_not_frozen_is_seen_to_move(build_any):
    """The control: the same checks fail on a part that the config does not freeze."""
    trainer = build_any('visual', ['language_model'], (), {})
    trainer.hooks = [watch := Watch(trainer)]
    with pytest.raises(AssertionError):
        check(trainer, ['language_model', 'merger'], (), watch)
