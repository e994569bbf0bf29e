"""Loss by source and by size of picture: against the plain cross-entropy of each target."""
import json

import pytest
import torch
from torch.nn import functional as F

from qvlkit.data.collate import BUCKET_NAMES
from qvlkit.train.hooks.sources import SourcesHook


@pytest.fixture
def mixed(build, tmp_path):
    """A trainer over two sources whose weights do not move; the second has no pictures."""
    records = [{'messages': [{'role': 'user', 'content': f'{i}?'}, {'role': 'assistant', 'content': str(2 * i)}]}
               for i in range(30)]
    (tmp_path / 'sums.json').write_text(json.dumps(records))

    def make(**loader):
        return build('stages.sft.data.type=Mixture',
                     'stages.sft.data.parts.drawn.dataset={type: PictureTasks, size: 20, tasks: [name]}',
                     'stages.sft.data.parts.sums.dataset={type: ConversationDataset, path: "%s"}'
                     % (tmp_path / 'sums.json'), 'stages.sft.optimizer.lr=0.0', 'stages.sft.accumulation=2',
                     'stages.sft.max_steps=5', 'stages.sft.hooks.jsonl=null', 'stages.sft.hooks.checkpoint=null')
    return make


def test_a_checkpoint_before_the_first_step_writes_no_line(mixed, tmp_path):
    trainer = mixed()
    trainer.hooks = [SourcesHook()]
    assert trainer.save().is_dir() and not (tmp_path / 'sft' / 'sources.jsonl').exists()


def test_losses_and_tokens_of_each_source_and_size_add_up(mixed, tmp_path):
    trainer = mixed()
    trainer.hooks = [SourcesHook(interval=2)]
    expected, tokens, per_picture = {}, {}, {}
    original = trainer.train_step

    def train_step(rows):
        for row in rows:
            with torch.no_grad():
                losses = F.cross_entropy(trainer.model.logits(row)[row.target_rows], row.target_ids, reduction='none')
            starts = row.attention.cu_q.tolist()
            for source, low, high in zip(row.sources, starts, starts[1:]):
                mine = (row.target_rows >= low) & (row.target_rows < high)
                visual = int(((row.visual_rows >= low) & (row.visual_rows < high)).sum())
                step = expected.setdefault(trainer.step // 2, {}).setdefault(source, [])
                step += losses[mine].tolist()
                tokens[trainer.step // 2, source] = tokens.get((trainer.step // 2, source), 0) + high - low
                name = 'text' if not visual else 'up to 64 visual tokens'
                per_picture.setdefault((trainer.step // 2, name), []).extend(losses[mine].tolist())
        return original(rows)
    trainer.train_step = train_step
    trainer.fit()
    lines = [json.loads(line) for line in (tmp_path / 'sft' / 'sources.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [2, 4, 5]
    for number, line in enumerate(lines):
        assert set(line['sources']) == {'drawn', 'sums'} and set(line['pictures']) <= set(BUCKET_NAMES)
        for source, found in line['sources'].items():
            losses = expected[number][source]
            assert found['targets'] == len(losses) and found['tokens'] == tokens[number, source]
            assert found['loss'] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        for name, found in line['pictures'].items():
            losses = per_picture[number, name]
            assert found == dict(loss=pytest.approx(sum(losses) / len(losses), rel=1e-5), targets=len(losses))
    assert len({round(found['loss'], 3) for found in lines[0]['sources'].values()}) == 2


def test_a_resume_cuts_lines_behind_its_checkpoint(mixed, tmp_path):
    file = tmp_path / 'sft' / 'sources.jsonl'
    file.parent.mkdir()
    file.write_text('{"step": 2}\n{"step": 4}\n')
    trainer = mixed()
    trainer.step, trainer.hooks = 2, [SourcesHook()]
    trainer.call_hooks('before_train')
    assert file.read_text() == '{"step": 2}\n'


def test_a_wrong_interval_is_named():
    with pytest.raises(ValueError, match='SourcesHook.interval'):
        SourcesHook(interval=0)
