"""The tiny model memorises real conversations from the command line; beside it, with pictures shuffled."""
import json
from pathlib import Path

import pytest

from qvlkit.cli import train
from qvlkit.train.hooks.jsonl import read_log

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / 'shared' / 'data'
FILES = dict(chat='chat/image_chat.json', grounding='grounding/single_images.json')
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason='needs the conversations in ../shared/data')


def shuffled(folder):
    """Copies of the files in which each picture stands where another one stood. The words stay."""
    records = {name: json.loads((SHARED / path).read_text()) for name, path in FILES.items()}
    places = []  # (list or record, its index or key, path from SHARED)
    for name, path in FILES.items():
        for record in records[name]:
            holder = record.get('images', record)
            keys = ['image'] if holder is record else range(len(holder))
            places += [(holder, key, str(Path(path).parent / holder[key])) for key in keys]
    pictures = [path for *_, path in places]
    moved = pictures[2:] + pictures[:2]
    assert all(here != there for here, there in zip(pictures, moved))
    for (holder, key, _), path in zip(places, moved):
        holder[key] = path
    for name, content in records.items():
        (folder / f'{name}.json').write_text(json.dumps(content))
    return {name: folder / f'{name}.json' for name in FILES}


def run(work_dir, paths, *overrides):
    arguments = [f'stages.sft.data.parts.{name}.dataset.{key}={value}' for name, path in paths.items()
                 for key, value in (('path', path), ('media_root', SHARED if path.parent == work_dir else path.parent))]
    assert train.main([str(ROOT / 'configs' / 'sft_chat_tiny.py'), '--work-dir', str(work_dir), '--set', *arguments,
                       'stages.sft.hooks.console=null', 'threads=1', *overrides]) == 0
    return [row['loss'] for row in read_log(work_dir / 'sft' / 'log.jsonl')]


@needs_data
def test_the_config_trains_on_the_conversations(tmp_path):
    losses = run(tmp_path, {name: SHARED / path for name, path in FILES.items()}, 'stages.sft.max_steps=2',
                 'model.vision_encoder.depth=2', 'model.language_model.depth=1',
                 'model.vision_encoder.full_attention_blocks=[1]')
    assert len(losses) == 2 and 2 < losses[0] < 20


def test_absent_files_are_named(tmp_path, capsys):
    assert train.main([str(ROOT / 'configs' / 'sft_chat_tiny.py'), '--work-dir', str(tmp_path)]) == 2
    assert 'data/chat.json' in capsys.readouterr().err


@needs_data
@pytest.mark.slow
@pytest.mark.acceptance
def test_a_tiny_model_memorises_real_conversations(tmp_path):
    """About three minutes on one core."""
    for name in ('true', 'shuffled'):
        (tmp_path / name).mkdir()
    files = shuffled(tmp_path / 'shuffled')
    true = run(tmp_path / 'true', {name: SHARED / path for name, path in FILES.items()})
    mixed = run(tmp_path / 'shuffled', files)
    for step in (10, 20, 30, 50, 100):
        print(f'step {step:3d}: loss {true[step - 1]:.4f}, '
              f'with pictures shuffled between samples {mixed[step - 1]:.4f}')
    assert len(true) == len(mixed) == 100
    assert sum(true[-9:]) / 9 < 0.05  # nine steps show every conversation
    assert true != mixed
