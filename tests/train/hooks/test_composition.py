"""composition.json: what stands in it, when it is written, and that training is what it would be without it."""
import json

import pytest

from qvlkit.registry import HOOKS

MIXED = ('stages.sft.data.type=Mixture',
         'stages.sft.data.parts.vqa.dataset={type: PictureTasks, size: 20, tasks: [name]}',
         'stages.sft.data.parts.vqa.weight=3.0')
HOOK = 'stages.sft.hooks.composition={type: CompositionHook, samples: 80}'


@pytest.fixture
def mixed(build, tmp_path):
    records = [{'messages': [{'role': 'user', 'content': f'{i}等于几？'},
                             {'role': 'assistant', 'content': f'等于{i}。'}]} for i in range(30)]
    (tmp_path / 'sums.json').write_text(json.dumps(records))

    def make(*overrides, folder='sft'):
        return build(*MIXED, 'stages.sft.data.parts.text.dataset={type: ConversationDataset, path: "%s"}'
                     % (tmp_path / 'sums.json'), 'stages.sft.data.parts.text.weight=1.0', *overrides,
                     work_dir=tmp_path / folder)
    return make


def test_it_is_written_before_the_first_step(mixed):
    trainer = mixed(HOOK)
    trainer.call_hooks('before_train')
    found = json.loads((trainer.work_dir / 'composition.json').read_text(encoding='utf-8'))
    assert found['samples'] == 80 and found['unusable'] == 0
    assert {name: value['by_sample'] for name, value in found['kind'].items()} == {'multimodal': 0.75, 'text': 0.25}
    assert found['language']['Chinese']['samples'] == 20 and found['subset'].keys() == {'general VQA', 'text'}
    sizes = [trainer.loader.processor.measure(trainer.loader.mixture.sample(1, index)).length for index in range(30)]
    assert 20 * min(sizes) <= found['kind']['text']['tokens'] <= 20 * max(sizes)


def test_training_is_not_changed(mixed, losses):
    for folder, hooks in (('with', [HOOK]), ('without', [])):
        mixed('stages.sft.max_steps=3', *hooks, folder=folder).fit()
    assert (mixed().work_dir.parent / 'with' / 'composition.json').is_file()
    parent = mixed().work_dir.parent
    assert losses(parent / 'with') == losses(parent / 'without')


def test_a_resume_and_another_rank_write_nothing(mixed):
    trainer = mixed(HOOK)
    trainer.step = 4
    trainer.call_hooks('before_train')
    trainer.step, trainer.strategy.is_main = 0, False
    trainer.call_hooks('before_train')
    assert not (trainer.work_dir / 'composition.json').exists()


def test_a_number_is_asked_for():
    with pytest.raises(ValueError, match='CompositionHook.samples: expected a number of at least 1, got 0'):
        HOOKS.build(dict(type='CompositionHook', samples=0))
