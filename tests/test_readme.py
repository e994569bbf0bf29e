"""What the documents say is held by the code: commands, paths, overrides, examples and links."""
import ast
import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

import qvlkit
from qvlkit.config import load_config
from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.models.builder import build_model
from qvlkit.registry import MERGERS
from qvlkit.structures import Media
from qvlkit.train.recipe import build_stage

ROOT = Path(__file__).parents[1]
READMES = [ROOT / 'README.md', ROOT / 'README.zh.md']
PAGES = [*READMES, ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md', ROOT / 'plugins' / 'README.md',
         ROOT / 'qvlkit' / 'data' / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
TEST_COMMAND = 'python -m pytest -m "not acceptance"'
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Contents of the fenced blocks of one language."""
    return [content for kind, content in BLOCK.findall(page.read_text(encoding='utf-8')) if kind == language]


def commands(page: Path) -> list[list[str]]:
    """Commands of the page's shell blocks as words; `a && b` is two."""
    found = []
    for line in '\n'.join(blocks(page, 'bash')).replace('\\\n', ' ').splitlines():
        words = shlex.split(line, comments=True)
        while '&&' in words:
            found.append(words[:words.index('&&')])
            words = words[words.index('&&') + 1:]
        found += [words] if words else []
    return found


def tool_commands(page: Path) -> list[tuple[str, list[str]]]:
    """(tool, arguments) of each command that calls one: tools/train.py ..., or qvlkit train ..."""
    found = []
    for words in commands(page):
        place = next((index for index, word in enumerate(words) if word.startswith('tools/')), None)
        if place is not None:
            assert (ROOT / words[place]).is_file(), words
            found.append((Path(words[place]).stem, words[place + 1:]))
        elif words[0].endswith('qvlkit'):
            found.append((words[1], words[2:]))
    return found


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_commands_parse_and_their_overrides_are_accepted(page):
    for tool, arguments in tool_commands(page):
        try:
            parsed = import_module(f'qvlkit.cli.{tool}').parser().parse_args(arguments)
        except SystemExit as error:
            assert arguments == ['--help'], f'{name_of(page)}: {tool} {arguments}: {error}'
            continue
        config = getattr(parsed, 'config', None) or ''
        if config.startswith('configs/'):
            assert (ROOT / config).is_file(), config
        if tool == 'train' and 'plugins=' not in ' '.join(parsed.overrides) and not config.startswith('my_'):
            load_config(config, parsed.overrides)


def test_the_pages_hold_commands():
    assert {tool for page in PAGES for tool, _ in tool_commands(page)} >= {'train', 'convert', 'list_parts'}


def test_two_commands_set_everything_up():
    """The first block: a run and the tests, on a fresh machine, in one line each."""
    train, tests = blocks(READMES[0], 'bash')[0].strip().splitlines()
    set_up, run = train.rsplit(' && ', 1)
    assert run == '.venv/bin/python tools/train.py configs/qwen25vl_tiny.py'
    assert tests == f'{set_up} && .venv/bin/{TEST_COMMAND}'
    project = (ROOT / 'pyproject.toml').read_text()
    assert re.search(r"'(torch[^']*)'", set_up)[1] in project and "'.[dev]'" in set_up


def test_ci_runs_the_readmes_test_command_and_no_other():
    lines = [line.partition(' </dev/null')[0] for line in (ROOT / '.ci' / 'run').read_text().splitlines()
             if 'pytest' in line and not line.startswith('#')]
    assert lines == [TEST_COMMAND]


def test_both_readmes_show_the_same():
    ours, theirs = ([blocks(page, language) for language in ('bash', 'json', 'python')] for page in READMES)
    ours[2], theirs[2] = ([re.sub(r'#.*', '', block) for block in found[2]] for found in (ours, theirs))
    assert ours == theirs
    assert tree(READMES[0]) == tree(READMES[1])


def tree(page: Path) -> list[str]:
    """Paths of the annotated tree: indented by folder, several on a line, then two spaces and a comment."""
    block, = (block for block in blocks(page, '') if block.startswith('qvlkit/'))
    paths, folders = [], []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r'\s{2,}', line.strip())[0].split()
        paths += ['/'.join([*folders[:depth], name.rstrip('/')]) for name in names]
        folders[depth:] = [names[-1].rstrip('/')]
    return paths


def test_every_path_of_the_tree_exists_and_no_folder_is_left_out():
    paths = tree(READMES[0])
    assert [path for path in paths if not (ROOT / path).exists()] == []
    folders = {f'qvlkit/{folder.name}' for folder in (ROOT / 'qvlkit').iterdir() if list(folder.glob('*.py'))}
    assert folders - set(paths) <= {'qvlkit/utils', 'qvlkit/_configs'}


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = BLOCK.sub('', page.read_text(encoding='utf-8'))
    links = re.findall(r'\]\(([^)#\s]+)[^)]*\)', text) + re.findall(r'<img src="([^"]+)"', text)
    assert [link for link in links if '://' not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links_to_a_heading_name_one(page):
    text = BLOCK.sub('', page.read_text(encoding='utf-8'))
    for path, anchor in re.findall(r'\]\(([^)#\s]*\.md)?#([^)\s]+)\)', text):
        target = BLOCK.sub('', (page.parent / path if path else page).read_text(encoding='utf-8'))
        headings = re.findall(r'^#+ (.*)$', target, re.MULTILINE)
        assert anchor in [re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings], anchor


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_python_examples_parse_and_use_what_there_is(page):
    for block in blocks(page, 'python'):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith('qvlkit'):
                assert all(hasattr(import_module(node.module), alias.name) for alias in node.names), ast.unparse(node)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'qvlkit':
                assert node.attr in qvlkit.__all__


def test_json_examples_are_conversations(tmp_path):
    for name in ('red.jpg', 'blue.png'):
        Image.new('RGB', (60, 40)).save(tmp_path / name)
    examples = blocks(READMES[0], 'json')
    assert len(examples) == 3
    for index, text in enumerate(examples):
        path = tmp_path / f'{index}.json'
        path.write_text(text)
        sample = ConversationDataset(str(path))[0]
        media = [item for turn in sample.turns for item in turn.content if isinstance(item, Media)]
        assert len(media) == text.count('.jpg') + text.count('.png')
        assert sample.turns[-1].role == 'assistant'
        assert len(json.loads(text)) == 1


@pytest.fixture(scope='module')
def plugin_config(tmp_path_factory):
    """A config on the smallest shipped model that names a folder with the page's examples."""
    home = tmp_path_factory.mktemp('plugins')
    (home / 'examples').mkdir()
    for block in blocks(ROOT / 'plugins' / 'README.md', 'python'):
        if 'register_module' in block:
            name = re.search(r'^class (\w+)', block, re.MULTILINE)[1]
            (home / 'examples' / f'readme_example_{name.lower()}.py').write_text(block)
    (home / 'mine.py').write_text(
        f"_base_ = ['{ROOT / 'configs' / 'qwen25vl_tiny.py'}']\nplugins = ['./examples']\n"
        "model = dict(merger=dict(type='WeightedMerger', merge_size=4))\n")
    return home / 'mine.py'


@pytest.mark.parametrize('stage, overrides', [
    ('contrastive', ['towers.text_tower={"type":"WordBag","width":32}', 'towers.pooling.type=LargestPooling']),
    ('sft', ['trainer.type=ZLossTrainer']),
    ('dpo', ['trainer.loss.type=SquaredHingeLoss'])])
def test_the_plugin_examples_train(plugin_config, tmp_path, stage, overrides):
    """A step of a stage with the page's parts in it, fed by the real data pipeline."""
    overrides = [*overrides, 'loader.num_workers=0', 'loader.window=8', 'loader.row_length=512']
    config = load_config(plugin_config, [f'stages.{stage}.{override}' for override in overrides] +
                         ['tokenizer.type=StandInTokenizer'])
    trainer = build_stage(config, stage, tmp_path / stage)
    if stage == 'dpo':
        trainer.begin_reference()
    before = {name: value.clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    metrics = trainer.train_step(next(iter(trainer.loader)))
    assert torch.isfinite(metrics['loss']) and metrics['loss'] > 0
    parts = [type(part).__name__ for part in trainer.model.children()]
    assert ('WordBag' in parts and 'LargestPooling' in parts) if stage == 'contrastive' else 'WeightedMerger' in parts
    after = dict(trainer.model.named_parameters())
    assert [name for name, value in before.items() if torch.equal(value, after[name])] == []


def test_the_contributors_example_works(monkeypatch):
    monkeypatch.setattr(MERGERS, '_module_dict', dict(MERGERS.module_dict))
    part, test = (block for block in blocks(ROOT / 'CONTRIBUTING.md', 'python'))
    names: dict = {'__name__': 'contributing'}
    exec(part + test, names)
    names['test_largest_value_of_each_block']()
    merger = names['MaxPoolMerger'](3, 5)
    assert merger.token_grid((1, 4, 6)) == (1, 2, 3) and merger.num_tokens((1, 4, 6)) == 6


def test_the_plugin_example_works(plugin_config):
    """The page's merger, in a folder named by a config, in the smallest shipped model."""
    config = load_config(plugin_config)
    model = build_model(config['model'], vocab_size=300, device='meta')
    assert type(model.merger).__name__ == 'WeightedMerger'
    assert model.merger.num_tokens((1, 8, 8)) == 4 and model.geometry.factor == 56
