"""The page of a small config: what stands on it, colours of targets, and marks where they should lie."""
import json
import logging
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageDraw

from qvlkit.cli import inspect_data
from qvlkit.cli.inspect_data import build_stage_loader
from qvlkit.config import load_config
from qvlkit.planning.close_up import CloseUp, close_ups
from qvlkit.planning.survey import survey

SECTIONS = ['Sources', 'Composition', 'Rows', 'Samples that cannot be used', 'Lengths, costs and fill', 'Pack map',
            'Samples as the model gets them']
HOSTILE = '</span><script>alert(1)</script>&'


@pytest.fixture(autouse=True)
def fresh_log():
    yield
    logging.getLogger('qvlkit').handlers.clear()


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """A config file over four sources: marked pictures, videos, text (some of it hostile), and broken records."""
    tmp_path = tmp_path_factory.mktemp('data')
    random = np.random.default_rng(0)
    for name in ('a', 'b', 'c'):
        Image.fromarray(random.integers(0, 256, (80, 120, 3), dtype=np.uint8)).save(tmp_path / f'{name}.png')
    Image.open(tmp_path / 'a.png').save(tmp_path / 'torn.jpg')
    (tmp_path / 'torn.jpg').write_bytes((tmp_path / 'torn.jpg').read_bytes()[:-2000])  # its header is whole
    marked = [{'image': 'a.png', 'objects': [{'bbox': [10, 20, 50, 70], 'label': f'{HOSTILE}{i}'},
                                             {'point': [100, 40], 'label': 'tip'},
                                             {'polygon': [[60, 10], [90, 10], [75, 60]], 'label': 'leaf'}]}
              for i in range(6)]
    text = [{'messages': [{'role': 'user', 'content': f'What is {i} + {i}? {HOSTILE} 你好<|im_end|>'},
                          {'role': 'assistant', 'content': f'{2 * i}\nover'}]} for i in range(12)]
    video = [{'messages': [{'role': 'user', 'content': [
        {'type': 'video', 'video': ['a.png', 'b.png', 'c.png'], 'fps': 2.0}, {'type': 'text', 'text': 'What?'}]},
        {'role': 'assistant', 'content': 'noise'}]} for _ in range(6)]
    broken = [{'messages': [{'role': 'user', 'content': [{'type': 'image', 'image': name}]},
                            {'role': 'assistant', 'content': 'A'}]} for name in ('gone.png', 'torn.jpg', 'b.png')]
    parts = {}
    for name, records in dict(marked=marked, text=text, video=video, broken=broken).items():
        (tmp_path / f'{name}.json').write_text(json.dumps(records))
        parts[name] = dict(dataset=dict(type='ConversationDataset', path=str(tmp_path / f'{name}.json')), epochs=1)
    whole = load_config('qwen25vl_tiny').to_dict()
    whole['tokenizer']['vocab_size'] = 384
    whole['run'] = ['sft']
    whole['stages']['sft']['data'] = dict(type='Mixture', parts=parts)
    whole['stages']['sft']['loader'] = dict(row_length=512, window=64, on_error='skip')
    whole['processor'].update(video_min_pixels=56 * 56, video_max_pixels=112 * 112)
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(whole))
    return path


@pytest.fixture(scope='module')
def page_text(shared, tmp_path_factory):
    """The page of that file with all of its samples, made once."""
    folder = tmp_path_factory.mktemp('page')
    assert inspect_data.main([str(shared), '--samples', '30', '--work-dir', str(folder)]) == 0
    return (folder / 'sft' / 'data.html').read_text(encoding='utf-8')


@pytest.fixture
def config(shared, tmp_path):
    """A copy of that file, for a test to change."""
    whole = json.loads(shared.read_text())
    whole['work_dir'] = str(tmp_path / 'work')
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(whole))
    return path


class PageReader(HTMLParser):
    """Headings, tokens of each sample as (ids, role, text), shapes, tables' cells and titles of a page."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.samples, self.shapes, self.cells, self.scripts, self.titles = [], [], [], [], 0, []
        self.piece, self.into = None, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.into = tag
        self.scripts += tag == 'script'
        if tag in ('rect', 'circle', 'polygon'):
            self.shapes.append((tag, attributes))
        if tag == 'div' and attributes.get('class') == 'tokens':
            self.samples.append([])
        elif tag == 'i' and attributes.get('class') and 'title' in attributes:
            self.samples[-1].append([attributes['title'], attributes['class'], ''])
            self.piece = self.samples[-1][-1]
        elif tag == 'i' and 'title' in attributes:
            self.titles.append(attributes['title'])

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        self.piece = self.into = None

    def handle_data(self, data):
        if self.piece is not None:
            self.piece[2] += data
        elif self.into in ('h2', 'h3'):
            self.headings.append(data)
        elif self.into == 'td':
            self.cells.append(data)


def shown_samples(config, count=8, **settings):
    loader = build_stage_loader(load_config(config), 'sft')
    results = list(close_ups(survey(loader, steps=50, **settings).items, count, loader.mixture, loader.processor))
    return loader, [result for result in results if isinstance(result, CloseUp)]


def test_the_tool_prints_a_table_and_where_the_page_is(config, tmp_path, capsys):
    assert inspect_data.main([str(config), '--samples', '1', '--stage', 'sft']) == 0
    printed = capsys.readouterr().out
    path = tmp_path / 'work' / 'sft' / 'data.html'
    assert f'wrote {path}' in printed and path.is_file()
    sources, composition = printed.split('\n\n')
    assert re.search(r'^kind +multimodal +\d+ +[\d.]+ % ', composition, re.MULTILINE)
    lines = {line.split()[0]: line.split() for line in sources.splitlines()}
    assert lines['text'][-3] == '12' and lines['broken'][-1] == '1' and lines['all'][-3] == '26'


def test_the_page_says_what_the_model_is_given(page_text):
    text, page = page_text, PageReader(page_text)
    assert [heading for heading in page.headings if heading in SECTIONS] == SECTIONS
    assert re.findall(r'(?:src|href)="(?!data:)', text) == [] and len(text) < 5_000_000
    for plot in ('Sample length', 'Sample cost', 'Row fill', 'Position ids of sample 1'):
        assert f'<figcaption>{plot}</figcaption>' in text
    # bad samples: one that planning meets, one that decoding meets
    for name, kind in (('broken.json[0]', 'missing_media'), ('broken.json[1]', 'bad_image')):
        assert name in page.cells and kind in page.cells, (name, page.cells)
    # the pack map names every sample of every row
    assert {title.split(':')[0] for title in page.titles} >= {'text.json[11]', 'marked.json[0]', 'video.json[5]'}
    # every region of the 6 marked pictures, in its frame: 120 x 80 is seen at 112 x 84
    kinds = [kind for kind, _ in page.shapes]
    assert kinds.count('rect') == 6 and kinds.count('polygon') == 6 and kinds.count('circle') == 12
    boxes = [attributes for kind, attributes in page.shapes if kind == 'rect']
    assert (float(boxes[0]['x']), float(boxes[0]['y'])) == pytest.approx((10 * 112 / 120, 20 * 84 / 80), abs=0.01)
    assert '<b>0.50 s</b>\nframe 1\n' in text and 'repeated' in text


def test_tokens_and_colours_are_those_of_the_sample(shared, page_text):
    page = PageReader(page_text)
    _, samples = shown_samples(shared, 30)
    assert len(page.samples) == len(samples) == 25  # all but the two broken ones
    kinds = set()
    for pieces, sample in zip(page.samples, samples):
        ids, targets = [], []
        for title, role, text in pieces:
            count = int(text.rsplit(' x ', 1)[1]) if role == 'visual' else 1
            found = [int(number) for number in title.split()] * count
            ids += found
            targets += [role == 'target'] * len(found)
        assert ids == sample.encoded.token_ids.tolist()
        assert targets == sample.encoded.is_target.tolist()
        visual = [text for _, role, text in pieces if role == 'visual']
        assert visual == [f'<|{kind}_pad|> x {count}' for kind, count in
                          zip(sample.encoded.kinds, sample.encoded.token_counts)]
        control = [text for _, role, text in pieces if role == 'control']
        assert control.count('<|im_start|>') == 3 and '<|im_end|>' in control
        kinds |= set(sample.encoded.kinds) or {'text'}
    assert kinds == {'image', 'video', 'text'}
    text = next(pieces for pieces, sample in zip(page.samples, samples) if sample.item.source == 'text')
    written = ''.join(piece[2] for piece in text if piece[1] == 'context')
    assert '你好<|im_end|>' in written  # its characters, not a control token; bytes of a character stay together


def test_hostile_text_is_shown_and_not_run(page_text):
    page = PageReader(page_text)
    assert page.scripts == 0 and '<script' not in page_text
    assert any('<script>' in ''.join(piece[2] for piece in pieces) for pieces in page.samples)
    assert 'alert(1)&lt;/script&gt;&amp;' in page_text  # the label of a box


def test_few_samples_are_of_every_kind(shared):
    _, samples = shown_samples(shared, 3)
    assert {kind for sample in samples for kind in sample.encoded.kinds or ['text']} == {'image', 'video', 'text'}
    _, samples = shown_samples(shared, 4)
    assert {sample.item.source for sample in samples} == {'marked', 'text', 'video', 'broken'}


def test_what_is_surveyed_is_what_the_loader_gives(shared):
    loader = build_stage_loader(load_config(shared, ['stages.sft.loader.window=8']), 'sft')
    found = survey(loader, steps=50)
    assert found.ended and found.drawn == dict(marked=6, text=12, video=6, broken=3)
    assert [error.sample_id for error in found.errors] == ['broken.json[0]']
    # the torn picture shows only when it is decoded: the loader puts another in its place
    rows = [batch for step in loader for batch in step]
    assert [len(row) for row in found.rows] == [len(batch.sample_ids) for batch in rows]
    for row, batch in zip(found.rows, rows):
        assert [item.id for item in row if item.source != 'broken'] == [
            name for name, source in zip(batch.sample_ids, batch.sources) if source != 'broken']
        assert sum(item.targets for item in row if item.source != 'broken') <= batch.num_targets


def test_another_epoch_is_another_order_and_other_draws(shared):
    changed = load_config(shared, ['stages.sft.loader.window=8', 'stages.sft.loader.row_length=256'])
    first, second = (survey(build_stage_loader(changed, 'sft'), steps=2, epoch=epoch) for epoch in (0, 1))
    assert {item.placed.draw.epoch for item in second.items} == {1}
    assert [item.id for item in first.items] != [item.id for item in second.items]


@pytest.mark.parametrize('arguments, words', [
    (['--stage', 'stf'], ["'stf'", 'did you mean', 'sft']), (['--steps', '0'], ['--steps', 'at least 1']),
    (['--samples', '-1'], ['--samples']), (['--set', 'stages.sft.loader.row_lenght=5'], ['row_length']),
    (['--set', 'stages.sft.data.parts.text.dataset.path=gone.json'], ['no such file', 'gone.json'])])
def test_mistakes_take_one_line(config, capsys, arguments, words):
    assert inspect_data.main([str(config), *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: ')
    assert all(word in lines[0] for word in words), lines


def test_nothing_usable_is_an_error(config, shared, tmp_path, capsys):
    records = json.loads((shared.parent / 'broken.json').read_text())
    (tmp_path / 'broken.json').write_text(json.dumps(records[:1]))
    source = f'stages.sft.data.path={tmp_path / "broken.json"}'
    assert inspect_data.main([str(config), '--set', 'stages.sft.data.type=ConversationDataset', source]) == 2
    assert 'no sample can be used; the first: broken.json[0]' in capsys.readouterr().err


def test_boxes_stay_around_what_they_mark_through_crop_flip_and_scale(config, tmp_path):
    """A red rectangle on black and its box, in 30 samples under random edits: the drawn box fits the red pixels."""
    random, records = np.random.default_rng(5), []
    for index in range(30):
        width, height = (int(side) for side in random.integers(90, 260, 2))
        x1, y1 = int(random.integers(2, width // 2)), int(random.integers(2, height // 2))
        x2, y2 = int(random.integers(x1 + 20, width - 2)), int(random.integers(y1 + 20, height - 2))
        picture = Image.new('RGB', (width, height))
        ImageDraw.Draw(picture).rectangle((x1, y1, x2 - 1, y2 - 1), fill=(255, 0, 0))
        picture.save(tmp_path / f'{index}.png')
        records.append({'image': f'{index}.png', 'objects': [{'bbox': [x1, y1, x2, y2], 'label': 'red'}]})
    (tmp_path / 'red.json').write_text(json.dumps(records))
    whole = json.loads(config.read_text())
    stage = whole['stages']['sft']
    stage['data'] = dict(type='ConversationDataset', path=str(tmp_path / 'red.json'))
    stage['processor'] = dict(min_pixels=56 * 56, max_pixels=280 * 280, transforms=dict(
        crop=dict(type='RandomCrop'), flip=dict(type='RandomFlip'), scale=dict(type='RandomScale')))
    config.write_text(json.dumps(whole))
    _, samples = shown_samples(config, 30)
    edits = set()
    assert len({sample.item.id for sample in samples}) == 30
    for sample in samples:
        medium, = sample.placed.media()
        edits |= {type(edit).__name__ for edit in medium.edits}
        picture, = sample.pictures(0)
        (box, _, label), = picture.boxes
        red = np.asarray(picture.image)[..., 0] > 127
        rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
        around = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        assert label == 'red' and 'OUTSIDE' not in picture.caption
        assert np.abs(np.array(box) - around).max() <= 2, (sample.item.id, box, around, medium.edits)
    assert edits == {'Crop', 'Flip', 'Resize'}


@pytest.fixture(scope='module')
def recipe_pages(shorten, tmp_path_factory):
    """Folder with the pages of the contrastive and the DPO stage of the tiny recipe."""
    folder = tmp_path_factory.mktemp('recipe')
    (folder / 'config.json').write_text(json.dumps(shorten(load_config('qwen25vl_tiny', ['tokenizer.vocab_size=384']))))
    for stage in ('contrastive', 'dpo'):
        assert inspect_data.main([str(folder / 'config.json'), '--stage', stage, '--samples', '3', '--steps', '1',
                                  '--work-dir', str(folder)]) == 0
    return folder


def test_a_caption_is_coloured_and_its_picture_shown(recipe_pages):
    text = (recipe_pages / 'contrastive' / 'data.html').read_text(encoding='utf-8')
    page = PageReader(text)
    assert [heading for heading in page.headings if heading in SECTIONS] == SECTIONS and len(page.samples) == 3
    for pieces in page.samples:
        assert [role for _, role, _ in pieces] == ['target'] * (len(pieces) - 1) + ['control']
        assert pieces[-1][2] == '<|endoftext|>' and pieces[0][2].strip()
    assert len(re.findall(r'tokens: \d+ cells of the picture, \d+ of its caption', text)) == 3
    assert text.count('<figure class="picture') >= 3


def test_both_answers_of_a_pair_begin_at_the_same_positions(recipe_pages):
    text = (recipe_pages / 'dpo' / 'data.html').read_text(encoding='utf-8')
    page = PageReader(text)
    lengths = re.findall(r'(\d+) of the chosen and (\d+) of the rejected answer, both from position \(\d', text)
    assert len(lengths) == len(page.samples) == 3 and 'from positions (' not in text
    for pieces, (chosen, rejected) in zip(page.samples, lengths):
        roles = [role for ids, role, _ in pieces for _ in ids.split()]
        assert roles.count('chosen') == int(chosen) and roles.count('rejected') == int(rejected)
        order = [role for role in roles if role in ('chosen', 'rejected')]
        assert order == sorted(order) and roles[-len(order):] == order  # at the end, the chosen one first
        shown = {role: ''.join(text for _, kind, text in pieces if kind == role) for role in ('chosen', 'rejected')}
        asked = ''.join(text for _, kind, text in pieces)
        better = min if 'from a to z.' in asked else max  # the rule of PicturePairs
        assert shown['chosen'] == better(shown.values())
