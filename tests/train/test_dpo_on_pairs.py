"""The tiny model memorises which answers of real pairs are better, from the command line, with both references.

It begins with random weights, so that a pass over a few hundred pairs teaches it nothing that holds for others: each
pair is seen eight times here, by the explicit override.
"""
import json
from pathlib import Path

import pytest

from qvlkit.cli import train
from qvlkit.config import save_config
from qvlkit.train.hooks.jsonl import read_log

SHARED = Path(__file__).parents[2].parent / 'shared' / 'data'
PAIRS = SHARED / 'preference' / 'dpo_en.json'


@pytest.mark.skipif(not PAIRS.is_file(), reason='needs the pairs in ../shared/data')
@pytest.mark.slow
@pytest.mark.parametrize('reference', ['live', 'stored'])
def test_the_margin_grows_on_real_pairs(small, tmp_path, reference):
    config = small()
    sft = config['stages'].pop('sft')
    pairs = dict(type='ConversationDataset', path=str(PAIRS), limit=32)
    config['stages']['dpo'] = {**sft, **dict(
        trainer=dict(type='DPOTrainer', reference=reference, max_answer_tokens=96, allow_repeats=True),
        data=dict(type='Mixture', parts=dict(pairs=dict(dataset=pairs, oversize='drop', epochs=8))),
        loader=dict(row_length=4096, window=32), max_steps=24, parts=dict(vision_encoder=dict(trainable=False)),
        hooks=dict(jsonl=dict(type='JSONLHook', interval=1), preference=dict(type='PreferenceHook', dataset=pairs)))}
    config['stages']['dpo']['optimizer']['lr'] = 3e-4
    config['run'] = ['dpo']
    config['tokenizer']['vocab_size'] = 1024
    save_config(config, tmp_path / 'dpo.json')
    assert train.main([str(tmp_path / 'dpo.json'), '--work-dir', str(tmp_path / 'run')]) == 0
    log = read_log(tmp_path / 'run' / 'dpo' / 'log.jsonl')
    margins = [row['reward_margin'] for row in log]
    print(f'{reference}: margins {[round(margin, 2) for margin in margins]}')
    assert margins[0] == pytest.approx(0, abs=1e-4) and log[0]['loss'] == pytest.approx(0.6931, abs=1e-3)
    thirds = [sum(margins[start:start + 8]) / 8 for start in (0, 8, 16)]
    assert thirds[0] < thirds[1] < thirds[2] and thirds[2] > 1
    found = json.loads((tmp_path / 'run' / 'dpo' / 'evaluation.json').read_text())['preference']
    assert found['before']['accuracy'] == 0.5 and found['after']['accuracy'] > 0.8 and found['after']['margin'] > 1
