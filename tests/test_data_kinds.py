"""The kinds of data: each has a fragment, a page and twenty samples that are right, readable and learnable."""
import ast
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvlkit.cli import inspect_data
from qvlkit.config import load_config
from qvlkit.data.actions import TOOLS, validate
from qvlkit.data.datasets.mixture import Mixture
from qvlkit.train.recipe import build_model, build_processor, build_stage, build_tokenizer

ROOT = Path(__file__).parents[1]
DATA, PAGES = ROOT / 'configs' / '_base_' / 'data', ROOT / 'docs' / 'data_kinds'
SAMPLES = DATA / 'samples'
LONG = ('long_video', 'long_document', 'long_agent')
VIDEOS = ('video', 'long_video')
KINDS = ('caption', 'visual_knowledge', 'ocr', 'text', 'interleaved', 'vqa', 'maths', 'grounding', 'document', 'video',
         'agent', *LONG)
PARAMETERS = [pytest.param(kind, marks=pytest.mark.slow) if kind in LONG else kind for kind in KINDS]
ROW = 1024  # of the tiny recipe's second stage
# The tiny config, whose clips are as small as its pictures.
SMALL_CLIPS = ['processor.video_min_pixels=3136', 'processor.video_max_pixels=7056']
VERY_SMALL = [
    *SMALL_CLIPS, 'model.vision_encoder.width=32', 'model.vision_encoder.depth=2', 'model.vision_encoder.num_heads=2',
    'model.vision_encoder.feed_forward_width=48', 'model.vision_encoder.full_attention_blocks=[1]',
    'model.language_model.width=64', 'model.language_model.depth=1', 'model.language_model.num_heads=2',
    'model.language_model.num_kv_heads=1', 'model.language_model.feed_forward_width=96',
    'stages.sft.loader.row_length=4096', 'stages.sft.loader.num_workers=0', 'stages.sft.max_steps=6',
    'stages.sft.schedule.warmup_ratio=0.0', 'stages.sft.hooks.evaluation=null', 'threads=1']


def needs_video(kind):
    if kind in VIDEOS:
        pytest.importorskip('av')


def records(kind):
    return [json.loads(line) for line in (SAMPLES / kind / f'{kind}.jsonl').read_text(encoding='utf-8').splitlines()]


def fragment(kind):
    """The part of a mixture that the fragment holds, over the twenty samples, read once, with the run's limits."""
    part = runpy.run_path(str(DATA / f'{kind}.py'))[f'_{kind}']
    dataset = {**part['dataset'], 'path': str(SAMPLES / kind / f'{kind}.jsonl')}
    return {**{key: value for key, value in part.items() if key != 'limits'}, 'dataset': dataset, 'epochs': 1}


def picture(path):
    return np.asarray(Image.open(path).convert('RGB')).astype(int)


def ink(pixels, ground=None):
    """[x1, y1, x2, y2] of what differs from the ground (the colour of the corner)."""
    rows, columns = np.nonzero(np.abs(pixels - (pixels[0, 0] if ground is None else ground)).sum(-1) > 60)
    return [columns.min(), rows.min(), columns.max(), rows.max()]


@pytest.fixture(scope='module')
def measured():
    """kind -> its twenty samples encoded with the tiny config's processor, its tokenizer trained on these samples."""
    config = load_config('qwen25vl_tiny', SMALL_CLIPS)
    found = {}

    def measure(kind):
        if kind not in found:
            mixture = Mixture({kind: fragment(kind)})
            tokenizer = build_tokenizer(config['tokenizer'], mixture)
            rules = build_model(config['model'], vocab_size=tokenizer.vocab_size, device='meta')
            processor = build_processor(rules, tokenizer, config['processor'])
            found[kind] = [(mixture[index], processor.placed(mixture[index]), processor.encode(mixture[index]))
                           for index in range(len(mixture))]
        return found[kind]
    return measure


def test_there_is_everything_of_each_kind_and_nothing_besides():
    assert {path.stem for path in DATA.glob('*.py')} == set(KINDS)
    assert {path.name for path in SAMPLES.iterdir() if path.is_dir() and path.name != '__pycache__'} == set(KINDS)
    assert {path.stem for path in PAGES.glob('*.md')} == {*KINDS, 'README'}
    assert sum(path.stat().st_size for path in SAMPLES.rglob('*') if path.is_file()) < 1_500_000


@pytest.mark.parametrize('kind', KINDS)
def test_the_fragment_says_what_it_is(kind):
    text = ast.get_docstring(ast.parse((DATA / f'{kind}.py').read_text(encoding='utf-8')))
    for word in ('Purpose', 'Source', 'Format', 'Page'):
        assert re.search(rf'^{word}: ', text, re.MULTILINE), word
    part = runpy.run_path(str(DATA / f'{kind}.py'))[f'_{kind}']
    assert part['dataset']['path'] == f'data/{kind}.jsonl' and part['weight'] > 0
    assert load_config(DATA / f'{kind}.py') == {}  # helper names alone


@pytest.mark.parametrize('kind', KINDS)
def test_the_page_shows_the_first_record(kind):
    page = (PAGES / f'{kind}.md').read_text(encoding='utf-8')
    assert [json.loads(block) for block in re.findall(r'^```json\n(.*?)^```$', page, re.M | re.S)] == records(kind)[:1]
    assert re.findall(r'^## (.*)$', page, re.M) == ['Record', 'To tokens', 'Limits and errors', 'Inspect']
    for field in records(kind)[0]:
        assert f'`{field}`' in page
    assert f'({kind}.md)' in (PAGES / 'README.md').read_text(encoding='utf-8')


@pytest.mark.parametrize('kind', KINDS)
def test_the_pages_command_works(kind, tmp_path):
    needs_video(kind)
    page = (PAGES / f'{kind}.md').read_text(encoding='utf-8')
    command, = re.findall(r'^```bash\npython tools/inspect_data.py (.*)\n```$', page, re.M)
    arguments = command.replace('configs/', f'{ROOT}/configs/').split()
    assert inspect_data.main([*arguments, f'work_dir={tmp_path}', '--steps', '1', '--samples', '1']) == 0
    assert 'None was found' in (tmp_path / 'sft' / 'data.html').read_text()


@pytest.mark.parametrize('kind', KINDS)
def test_twenty_records_are_read_and_encoded(kind, measured):
    needs_video(kind)
    samples = measured(kind)
    assert len(samples) == 20 and len(set(map(str, records(kind)))) == 20
    for sample, placed, encoded in samples:
        assert encoded.is_target.sum() > 10
        assert all(medium.size == medium.source_size for medium in placed.media())  # each is seen as it is
        assert bool(encoded.token_counts) == (kind != 'text')
        assert (encoded.length > ROW) == (kind in LONG or kind == 'agent'), f'{sample.id}: {encoded.length} tokens'


@pytest.mark.parametrize('kind', PARAMETERS)
def test_a_very_small_model_learns_them(kind, tmp_path):
    """All twenty in each step, so that the losses of two steps are of the same tokens."""
    needs_video(kind)
    losses = train(kind, tmp_path, lr=3e-3)
    assert losses[0] > 4 and losses[-1] < 0.9 * losses[0]


def test_without_a_rate_nothing_is_learned(tmp_path):
    losses = train('caption', tmp_path, lr=0.0)
    assert losses[-1] == pytest.approx(losses[0], rel=1e-5)


def train(kind, folder, lr):
    config = load_config('qwen25vl_tiny', [*VERY_SMALL, f'stages.sft.optimizer.lr={lr}']).to_dict()
    config['stages']['sft'].update(data=dict(type='Mixture', parts={kind: fragment(kind)}), hooks={})
    trainer = build_stage(config, 'sft', folder)
    rows = [row for step in trainer.loader for row in step]
    assert sum(len(row.sample_ids) for row in rows) == 20
    trainer.model.train()
    return [float(trainer.train_step(rows)['loss']) for _ in range(6)]


def test_the_script_makes_what_is_committed(tmp_path):
    script = runpy.run_path(str(SAMPLES / 'make_samples.py'))
    kinds = [kind for kind in KINDS if kind not in VIDEOS]
    script['make'](tmp_path, kinds)
    for kind in kinds:
        names = {path.name for path in (SAMPLES / kind).iterdir()}
        assert names == {path.name for path in (tmp_path / kind).iterdir()}
        for name in names:
            ours, theirs = SAMPLES / kind / name, tmp_path / kind / name
            if ours.suffix == '.png':
                assert np.abs(picture(ours) - picture(theirs)).mean() < 2
            else:
                assert ours.read_text(encoding='utf-8') == theirs.read_text(encoding='utf-8')


def test_boxes_lie_on_what_they_name():
    colours = runpy.run_path(str(SAMPLES / 'make_samples.py'))['COLOURS']
    for record in records('grounding'):
        pixels = picture(SAMPLES / 'grounding' / record['image'])
        for entry in record['objects']:
            is_colour = np.abs(pixels - np.array(colours[entry['label'].split()[0]])).sum(-1) < 40
            rows, columns = np.nonzero(is_colour)
            if 'point' in entry:
                assert is_colour[entry['point'][1], entry['point'][0]]
            elif entry['bbox'] is not None:
                found = [columns.min(), rows.min(), columns.max(), rows.max()]
                assert np.abs(np.array(entry['bbox']) - found).max() <= 1
    for record in records('ocr'):
        pixels = picture(SAMPLES / 'ocr' / record['images'][0])
        for line in json.loads(record['messages'][1]['content']):
            x1, y1, x2, y2 = line['bbox_2d']
            inside = pixels[max(0, y1 - 3):y2 + 4, max(0, x1 - 3):x2 + 4]
            found = np.array(ink(inside, pixels[0, 0])) + [max(0, x1 - 3), max(0, y1 - 3)] * 2
            assert np.abs(found - [x1, y1, x2, y2]).max() <= 3, line


def test_results_are_right():
    for record in records('maths'):
        answer = re.sub(r'√(\d+)', r'(\1 ** 0.5)', record['messages'][1]['content'])
        answer = answer.replace('²', '**2').replace('×', '*')
        steps = re.findall(r'[\d *+/().]+(?:= [\d *+/().]+)+', answer)
        assert steps
        for step in steps:
            values = {round(eval(side.strip(' .')), 6) for side in step.split('=')}
            assert len(values) == 1, step
    for record in records('long_agent'):
        first, word, second = re.fullmatch(r'Compute (\d+) (\w+) (\d+) with the calculator.', record['task']).groups()
        result = {'plus': int.__add__, 'minus': int.__sub__, 'times': int.__mul__}[word](int(first), int(second))
        assert f'shows {result}, ' in record['steps'][-1]['thought']
    for record in records('long_document'):
        text = record['text']
        for shelf, count, good in re.findall(r'what is on shelf (\w\d)\? Answer: (\d+) bags of (\w+)', text):
            assert f'Shelf {shelf}: {count} bags of {good}, ' in text
        totals = {}
        for count, good in re.findall(r': (\d+) bags of (\w+),', text):
            totals[good] = totals.get(good, 0) + int(count)
        assert f'most of {max(totals, key=totals.get)}, least of {min(totals, key=totals.get)}.' in text


def test_actions_are_of_their_platform_and_on_their_screens():
    for kind in ('agent', 'long_agent'):
        for record in records(kind):
            for step in record['steps']:
                size = Image.open(SAMPLES / kind / step['screenshot']).size
                call = {'name': TOOLS[record['platform']], 'arguments': step['action']}
                assert validate(call, record['platform'], size) is None


@pytest.mark.parametrize('kind', VIDEOS)
def test_times_are_those_of_the_frames(kind):
    """Whether a shape is in the middle, frame by frame, against the seconds in the answers."""
    av = pytest.importorskip('av')
    checked = 0
    for record in records(kind):
        with av.open(str(SAMPLES / kind / record['videos'][0])) as container:
            rate = float(container.streams.video[0].average_rate)
            middles = [frame.to_ndarray(format='rgb24')[42, 42] for frame in container.decode(video=0)]
        shown = np.array([middle.min() < 180 for middle in middles])
        answer = record['messages'][-1]['content']
        if times := re.findall(r'(\d+\.\d) seconds', answer):
            start, end = (round(float(time) * rate) for time in times)
            expected = np.zeros(len(shown), bool)
            expected[start:end] = True
            assert (shown == (~expected if 'empty' in record['messages'][-2]['content'] else expected)).all()
            checked += 1
    assert checked == (20 if kind == 'long_video' else 5)


def test_the_documents_boxes_hold_what_they_name():
    for record in records('document'):
        pixels = picture(SAMPLES / 'document' / record['images'][0])
        boxes = [list(map(int, box.split())) for box in re.findall(r'data-bbox="([\d ]+)"',
                                                                   record['messages'][-1]['content'])]
        outside = np.ones(pixels.shape[:2], bool)
        for x1, y1, x2, y2 in boxes:
            assert np.abs(pixels[y1:y2 + 1, x1:x2 + 1] - pixels[0, 0]).sum(-1).max() > 60
            outside[max(0, y1 - 2):y2 + 3, max(0, x1 - 2):x2 + 3] = False
        assert np.abs(pixels - pixels[0, 0]).sum(-1)[outside].max(initial=0) < 60
