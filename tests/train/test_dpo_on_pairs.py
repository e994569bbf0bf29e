"""The tiny model learns to tell the answers of real pairs apart, from the command line, with both references."""
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
    pairs = dict(type='ConversationDataset', path=str(PAIRS), limit=96)
    config['stages']['dpo'] = {**sft, **dict(
        trainer=dict(type='DPOTrainer', reference=reference, max_answer_tokens=128),
        data=dict(type='Mixture', parts=dict(pairs=dict(dataset=pairs, oversize='drop'))),
        loader=dict(row_length=2048, window=96), max_steps=24, parts=dict(vision_encoder=dict(trainable=False)),
        hooks=dict(jsonl=dict(type='JSONLHook', interval=1),
                   preference=dict(type='PreferenceHook', dataset={**pairs, 'limit': 16})))}
    config['run'] = ['dpo']
    config['tokenizer']['vocab_size'] = 1024
    save_config(config, tmp_path / 'dpo.json')
    assert train.main([str(tmp_path / 'dpo.json'), '--work-dir', str(tmp_path / 'run')]) == 0
    log = read_log(tmp_path / 'run' / 'dpo' / 'log.jsonl')
    margins = [row['reward_margin'] for row in log]
    print(f'{reference}: margins {[round(margin, 3) for margin in margins]}')
    assert margins[0] == pytest.approx(0, abs=1e-4) and log[0]['loss'] == pytest.approx(0.6931, abs=1e-3)
    third = len(margins) // 3
    first, last = sum(margins[:third]) / third, sum(margins[-third:]) / third
    assert last > first and last > 0.05
    held_out = json.loads((tmp_path / 'run' / 'dpo' / 'evaluation.json').read_text())['preference']
    assert held_out['before']['accuracy'] == 0.5 and held_out['after']['margin'] > 0
