"""Configs: what is read, what is refused, how overrides and changed types behave, what is saved."""
import inspect
import json
import logging
from pathlib import Path

import pytest

from qvlkit.config import load_config, save_config, validate
from qvlkit.config.load import redact
from qvlkit.registry import HOOKS, MERGERS, OPTIMIZERS, constructor_keys

BASE = '''
model = dict(merger=dict(type='NarrowMerger', merge_size=2, hidden=8), attention='sdpa')
stages = dict(sft=dict(
    max_steps=10, max_grad_norm=1.0, parts=dict(merger=dict(), language_model=dict(trainable=False)),
    optimizer=dict(type='PlainOptimizer', lr=1e-3, betas=[0.9, 0.95]),
    hooks=dict(log=dict(type='PlainHook', interval=5))))
run = ['sft']
work_dir = 'out'
seed = 0
'''


class NarrowMerger:
    def __init__(self, vision_dim, language_dim, *, merge_size=2, hidden=None):
        pass


class WideMerger:
    def __init__(self, vision_dim, language_dim, *, merge_size=2, queries=4):
        pass


class PlainOptimizer:
    def __init__(self, parameters, *, lr=1e-3, betas=(0.9, 0.95), fused=False, note=None):
        pass


class PlainHook:
    def __init__(self, interval=1):
        pass


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    for registry, part in [(MERGERS, NarrowMerger), (MERGERS, WideMerger), (OPTIMIZERS, PlainOptimizer),
                           (HOOKS, PlainHook)]:
        registry.names()
        monkeypatch.setitem(registry.module_dict, part.__name__, part)


@pytest.fixture
def base(tmp_path):
    return write(tmp_path / 'base.py', BASE)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refusal(*arguments):
    with pytest.raises(ValueError) as error:
        load_config(*arguments)
    return str(error.value)


# Files ----------------------------------------------------------------------------------------------------------

def test_python_yaml_and_json_say_the_same(tmp_path, base):
    python = load_config(base)
    assert python.stages.sft.optimizer.lr == 1e-3
    save_config(python, tmp_path / 'saved' / 'config.json')
    assert load_config(tmp_path / 'saved' / 'config.json') == python
    assert not list((tmp_path / 'saved').glob('*.tmp'))
    yaml = write(tmp_path / 'c.yaml', 'model:\n  merger: {type: NarrowMerger, merge_size: 2, hidden: 8}\n'
                                      'stages: {sft: {optimizer: {type: PlainOptimizer, lr: 1e-3}}}\nrun: [sft]\n')
    assert load_config(yaml).stages.sft.optimizer.lr == 1e-3
    assert load_config(yaml).model.merger == python.model.merger


def test_a_child_inherits_and_helper_names_stay_out(tmp_path, base):
    child = write(tmp_path / 'sub' / 'child.py', "from pathlib import Path\n_base_ = ['../base.py']\n_steps = 7\n"
                                                 "stages = dict(sft=dict(max_steps=_steps))\n")
    config = load_config(child)
    assert config.stages.sft.max_steps == 7 and config.stages.sft.max_grad_norm == 1.0
    assert '_steps' not in config and 'Path' not in config and '_base_' not in config
    yaml = write(tmp_path / 'child.yaml', '_base_: base.py\nstages: {sft: {max_steps: 9}}\n')
    config = load_config(yaml)
    assert config.stages.sft.max_steps == 9 and config.stages.sft.max_grad_norm == 1.0


def test_a_circle_of_bases_is_refused(tmp_path):
    write(tmp_path / 'a.yaml', '_base_: b.yaml\n')
    assert 'circle' in refusal(write(tmp_path / 'b.yaml', '_base_: a.yaml\n'))


def test_a_missing_file_names_near_ones(tmp_path, base):
    message = refusal(tmp_path / 'bsae.py')
    assert 'bsae.py' in message and "did you mean 'base'" in message
    assert "did you mean 'base.py'" in refusal(write(tmp_path / 'c.py', "_base_ = './bass.py'\n"))
    assert '.py, .yaml' in refusal(write(tmp_path / 'notes.txt', ''))


@pytest.mark.parametrize('name', ['qwen25vl_tiny', 'qwen25vl_tiny.py', 'configs/qwen25vl_tiny.py',
                                  'configs/qwen25vl_tiny'])
def test_shipped_configs_are_found_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert 'sft' in load_config(name).stages


def test_errors_in_a_python_config_name_file_and_line(tmp_path):
    message = refusal(write(tmp_path / 'c.py', 'seed = 0\nrun = [missing]\n'))
    assert 'c.py, line 2' in message and 'missing' in message
    assert 'd.py, line 2' in refusal(write(tmp_path / 'd.py', 'seed = 0\nrun = [\n'))


# Refused files (nothing of them may be executed) ----------------------------------------------------------------

BOMB = 'a: &a [x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'{chr(98 + i)}: &{chr(98 + i)} [{", ".join(["*" + chr(97 + i)] * 9)}]\n' for i in range(8))
HOSTILE = {
    'python_tag.yaml': ('seed: 0\nwork_dir: !!python/object/apply:os.system ["touch MARKER"]\n',
                        ['python_tag.yaml, line 2', 'os.system']),
    'python_name.yml': ('work_dir: !!python/name:os.getpid\n', ['line 1', 'os.getpid']),
    'imports.py': ("seed = 0\ncustom_imports = dict(imports=['hostile_module'])\n",
                   ['imports.py, line 2', 'custom_imports', 'plugins']),
    'imports.yaml': ('seed: 0\ncustom_imports: {imports: [hostile_module]}\n', ['line 2', 'custom_imports']),
    'imports.json': ('{"seed": 0, "custom_imports": {"imports": ["hostile_module"]}}', ['custom_imports']),
    'getoutput.py': ("model = dict(merger=dict(type='subprocess.getoutput', cmd='touch MARKER'))\n",
                     ['model.merger.type', 'subprocess.getoutput']),
    'getpid.yaml': ('stages: {sft: {optimizer: {type: os.getpid}}}\n', ['stages.sft.optimizer.type', 'os.getpid']),
    'nowhere.yaml': ('stages: {sft: {hooks: {log: {thing: {type: os.getpid}}}}}\n',
                     ['stages.sft.hooks.log.thing.type', 'os.getpid']),
    'bomb.yaml': (BOMB, ['bomb.yaml', 'expansion']),
    'twice.yaml': ('seed: 0\nrun: []\nseed: 1\n', ['twice.yaml, line 3', 'duplicate key seed']),
    'twice.json': ('{"seed": 0, "seed": 1}', ['twice.json', 'duplicate key seed']),
    'deep.json': ('{"a":' * 100_000, ['deep.json']),
    'unknown.py': ('sede = 0\n', ['sede', "did you mean 'seed'"]),
    'unread.yaml': ('evaluation: {metrics: {}}\n', ['evaluation', 'unknown key']),
    'unread_stage_key.yaml': ('stages: {sft: {begin: null}}\n', ['stages.sft.begin', 'unknown key']),
    'unknown_stage_key.yaml': ('stages: {sft: {max_step: 3}}\n', ['stages.sft.max_step', "did you mean 'max_steps'"]),
    'unknown_argument.py': ("model = dict(merger=dict(type='NarrowMerger', hiden=3))\n",
                            ['model.merger.hiden', "did you mean 'hidden'"]),
    'unknown_part.py': ('stages = dict(sft=dict(parts=dict(mergr=dict())))\n',
                        ['stages.sft.parts.mergr', "did you mean 'merger'"]),
    'nan.yaml': ('stages: {sft: {optimizer: {type: PlainOptimizer, lr: .nan}}}\n',
                 ['stages.sft.optimizer.lr', 'finite', 'nan']),
    'nan.json': ('{"stages": {"sft": {"optimizer": {"type": "PlainOptimizer", "lr": NaN}}}}',
                 ['stages.sft.optimizer.lr', 'finite']),
    'inf.py': ("stages = dict(sft=dict(optimizer=dict(type='PlainOptimizer', lr=float('inf'))))\n",
               ['stages.sft.optimizer.lr', 'finite', 'inf']),
    'negative.py': ("stages = dict(sft=dict(optimizer=dict(type='PlainOptimizer', lr=-1.0)))\n",
                    ['stages.sft.optimizer.lr', '-1.0']),
    'variable.py': ("work_dir = '{{$MY_SECRET_KEY:x}}'\n", ['variable.py, line 1', 'environment']),
    'resolver.yaml': ('seed: 0\nwork_dir: ${oc.env:MY_SECRET_KEY}\n', ['resolver.yaml, line 2', 'environment']),
    'interpolation.yaml': ('work_dir: ${seed}\nseed: 0\n', ['work_dir', 'interpolation']),
    'unresolved.yaml': ('work_dir: "${"\n', ['unresolved.yaml']),
    'object.py': ('import os\nrun = [os.getpid]\n', ['run.0', 'plain data']),
    'list.yaml': ('- a\n', ['list.yaml', 'keys and values']),
    'number_key.yaml': ('model: {1: 2}\n', ['model', '1']),
    'run.py': ("run = ['stf']\nstages = dict(sft=dict())\n", ['run', "did you mean 'sft'"]),
    'yaml_base.py': ("_base_ = 'python_tag.yaml'\n", ['yaml_base.py', '_base_', 'Python']),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_or_wrong_file_is_refused_with_its_key_and_runs_nothing(tmp_path, monkeypatch, name):
    monkeypatch.setenv('MY_SECRET_KEY', 'secret-value-123')
    monkeypatch.syspath_prepend(tmp_path)
    marker = tmp_path / 'marker'
    write(tmp_path / 'hostile_module.py', f'open({str(marker)!r}, "w").close()\n')
    for other, (text, _) in HOSTILE.items():
        write(tmp_path / other, text.replace('MARKER', str(marker)))
    message = refusal(tmp_path / name)
    for word in HOSTILE[name][1]:
        assert word in message
    assert not marker.exists()
    assert 'secret-value-123' not in message


def test_a_file_with_a_tag_is_refused_as_base_too(tmp_path):
    marker = tmp_path / 'marker'
    write(tmp_path / 'bad.yaml', HOSTILE['python_tag.yaml'][0].replace('MARKER', str(marker)))
    assert 'bad.yaml, line 2' in refusal(write(tmp_path / 'good.yaml', '_base_: bad.yaml\n'))
    assert not marker.exists()


# Overrides ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('override, expected', [
    ('stages.sft.optimizer.lr=1e-5', 1e-5), ('stages.sft.optimizer.lr=1', 1.0), ('seed=7', 7),
    ('stages.sft.parts.language_model.trainable=true', True), ('work_dir=runs/a b=c', 'runs/a b=c'),
    ('stages.sft.optimizer.betas=[0.5, 1]', [0.5, 1.0]), ('model.merger.hidden=32', 32),
    ('stages.sft.optimizer.fused=true', True), ('stages.sft.optimizer.note=hello', 'hello'),
    ('stages.sft.parts.merger.lr=1e-6', 1e-6), ('stages.sft.parts.vision_encoder.trainable=false', False),
    ('stages.sft.max_grad_norm=null', None), ('precision=fp32', 'fp32'), ('stages.sft.accumulation=4', 4),
    ('run=[]', []), ("work_dir='12'", '12'),
])
def test_overrides_are_typed_data(base, override, expected):
    value = load_config(base, [override])
    for key in override.partition('=')[0].split('.'):
        value = value[key]
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize('override, words', [
    ('stages.sft.max_steps=abc', ['stages.sft.max_steps', 'int', "'abc'", '10']),
    ('stages.sft.max_steps=2.5', ['stages.sft.max_steps', 'int', '2.5']),
    ('stages.sft.max_steps=true', ['stages.sft.max_steps', 'int', 'True']),
    ('stages.sft.max_steps=null', ['stages.sft.max_steps', 'int', 'None']),
    ('stages.sft.parts.language_model.trainable=1', ['trainable', 'bool']),
    ('work_dir=12', ['work_dir', 'str', '12']),
    ('stages.sft.optimizer.lr=nan', ['stages.sft.optimizer.lr', 'float', 'nan']),
    ('stages.sft.optimizer.lr=.inf', ['stages.sft.optimizer.lr', 'finite', 'inf']),
    ('stages.sft.optimizer.lr=-1.0', ['stages.sft.optimizer.lr', '-1.0']),
    ('stages.sft.optimizer.betas=[a, b]', ['stages.sft.optimizer.betas.0', 'float']),
    ('stages.sft.optimizer.fused=3', ['stages.sft.optimizer.fused', 'bool']),
    ('stages.sft.optimiser.lr=1', ['stages.sft.optimiser', "did you mean 'optimizer'"]),
    ('stages.sft.optimizer.learning_rate=1', ['stages.sft.optimizer.learning_rate', 'betas']),
    ('stages.stf.max_steps=3', ['stages.stf', "did you mean 'sft'"]),
    ('sede=3', ['sede', "did you mean 'seed'"]),
    ('stages.sft=3', ['stages.sft', 'dict']),
    ('run.0=sft', ['run', 'list']),
    ('seed.a=3', ['seed', 'no keys']),
    ('work_dir=${oc.env:MY_SECRET_KEY}', ['work_dir', 'interpolation']),
    ('work_dir=${seed}', ['work_dir', 'interpolation']),
    ('work_dir=!!python/object/apply:os.getpid []', ['work_dir', 'os.getpid']),
    ('seed', ['seed', 'key.path=value']), ('=3', ['key.path=value']), ('a..b=3', ['key.path=value']),
    ('model.merger.type=subprocess.getoutput', ['model.merger.type', 'subprocess.getoutput']),
    ('model.merger.type=WydeMerger', ['model.merger.type', "did you mean 'WideMerger'"]),
    ('stages.sft.hooks.new.interval=3', ['stages.sft.hooks has no entry', "'new'", 'stages.sft.hooks.new.type']),
    ('model.merger.typ=WideMerger', ['model.merger.typ', "did you mean 'type'"]),
    ('stages.sft.hooks.nothing=null', ['stages.sft.hooks.nothing', 'log']),
    ('custom_imports.imports=[os]', ['custom_imports']),
])
def test_a_wrong_override_is_refused_with_its_key(base, monkeypatch, override, words):
    monkeypatch.setenv('MY_SECRET_KEY', 'secret-value-123')
    message = refusal(base, [override])
    for word in words:
        assert word in message
    assert 'secret-value-123' not in message


def test_hooks_can_be_added_and_removed(base):
    hooks = load_config(base, ['stages.sft.hooks.second.interval=3', 'stages.sft.hooks.second.type=PlainHook',
                               'stages.sft.hooks.log=null']).stages.sft.hooks
    assert hooks == dict(second=dict(type='PlainHook', interval=3))
    assert load_config(base, ['stages.sft.hooks.x={type: PlainHook, interval: 2}']).stages.sft.hooks.x.interval == 2


# A changed type -------------------------------------------------------------------------------------------------

def test_a_changed_type_drops_inherited_keys_and_logs_them(tmp_path, base, caplog):
    with caplog.at_level(logging.INFO, 'qvlkit'):
        config = load_config(base, ['model.merger.type=WideMerger', 'model.merger.queries=9'])
    assert config.model.merger == dict(type='WideMerger', merge_size=2, queries=9)
    assert 'model.merger.hidden = 8 dropped' in caplog.text
    child = write(tmp_path / 'child.py',
                  "_base_ = 'base.py'\nmodel = dict(merger=dict(type='WideMerger', queries=9))\n")
    grandchild = write(tmp_path / 'grandchild.yaml', '_base_: child.py\nseed: 3\n')
    assert load_config(child).model.merger == dict(type='WideMerger', merge_size=2, queries=9)
    assert load_config(grandchild).model.merger == dict(type='WideMerger', merge_size=2, queries=9)
    back = load_config(child, ['model.merger.type=NarrowMerger'])
    assert back.model.merger == dict(type='NarrowMerger', merge_size=2)


def test_a_key_given_with_the_new_type_is_judged_by_the_new_constructor(tmp_path, base):
    for override in ('model.merger.hidden=4', 'model.merger.hidden=8'):
        assert 'model.merger.hidden' in refusal(base, [override, 'model.merger.type=WideMerger'])
    child = write(tmp_path / 'child.py', "_base_ = 'base.py'\nmodel = dict(merger=dict(type='WideMerger', hidden=4))\n")
    message = refusal(child)
    assert 'model.merger.hidden' in message and 'WideMerger' in message


# Plugins --------------------------------------------------------------------------------------------------------

PLUGIN = '''
from qvlkit.registry import MERGERS

@MERGERS.register_module()
class {name}:
    """From a plugin."""
    def __init__(self, knob=1):
        pass
'''


@pytest.mark.parametrize('layout, name', [('one/{0}.py', 'plugin_flat'), ('one/{0}/__init__.py', 'plugin_package'),
                                          ('one/src/{0}/__init__.py', 'plugin_src')])
def test_plugins_of_a_folder_are_imported_before_the_config_is_checked(tmp_path, monkeypatch, layout, name):
    monkeypatch.syspath_prepend(tmp_path)  # restores sys.path afterwards
    part = f'Part{name}'
    write(tmp_path / 'plugins' / layout.format(name), PLUGIN.format(name=part))
    write(tmp_path / 'plugins' / 'one' / 'setup.py', 'raise SystemExit')
    config = write(tmp_path / 'configs' / 'c.py', f"plugins = ['plugins/one']\n"
                                                  f"model = dict(merger=dict(type='{part}', knob=2))\n")
    try:
        assert load_config(config).model.merger.knob == 2
    finally:
        MERGERS.module_dict.pop(part, None)


def test_a_plugin_that_is_missing_or_broken_is_named(tmp_path, base, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert 'plugins/none' in refusal(base, ['plugins=[plugins/none]'])
    assert 'no_such_module_here' in refusal(base, ['plugins=[no_such_module_here]'])
    write(tmp_path / 'plugins' / 'broken' / 'broken_one.py', 'import no_such_module_here\n')
    message = refusal(base, ['plugins=[plugins/broken]'])
    assert 'plugins/broken' in message and 'no_such_module_here' in message
    (tmp_path / 'plugins' / 'empty').mkdir()
    assert 'no Python package' in refusal(base, ['plugins=[plugins/empty]'])
    assert 'list' in refusal(base, ['plugins=os'])


# Secrets --------------------------------------------------------------------------------------------------------

def test_secrets_do_not_reach_the_saved_config_or_the_log(tmp_path, monkeypatch, caplog):
    secret = 'secret-value-of-the-environment'
    monkeypatch.setenv('SOME_API_KEY', secret)
    path = write(tmp_path / 'c.py', "import os\nwork_dir = 'runs/' + os.environ['SOME_API_KEY']\n"
                                    "log = dict(api_key=os.environ['SOME_API_KEY'], hub_token='abc', password='p',\n"
                                    "           client_secret='s', image_key='image', tokens_per_second=2,\n"
                                    "           num_tokens=5, eos_token='<|im_end|>')\n"
                                    "stages = dict(sft=dict(hooks=dict(log=log)))\ndel log\n")
    with caplog.at_level(logging.DEBUG):
        save_config(load_config(path), tmp_path / 'saved.json')
    text = (tmp_path / 'saved.json').read_text()
    assert secret not in text and secret not in caplog.text
    assert json.loads(text)['stages']['sft']['hooks']['log'] == dict(
        api_key='<redacted>', hub_token='<redacted>', password='<redacted>', client_secret='<redacted>',
        image_key='image', tokens_per_second=2, num_tokens=5, eos_token='<|im_end|>')
    assert load_config(tmp_path / 'saved.json').stages.sft.hooks.log.num_tokens == 5


def test_redaction_keeps_the_tokenizer():
    config = dict(tokenizer=dict(type='X', path='p'), a=[dict(WANDB_API_KEY='v')], key='name')
    assert redact(config) == dict(tokenizer=dict(type='X', path='p'), a=[dict(WANDB_API_KEY='<redacted>')], key='name')


def test_saving_replaces_a_file_whole(tmp_path):
    target = tmp_path / 'config.json'
    save_config(dict(seed=1), target)
    with pytest.raises(ValueError):
        save_config(dict(seed=float('nan')), target)
    assert json.loads(target.read_text()) == dict(seed=1)


def test_every_shipped_config_is_valid():
    folder = Path(__file__).parents[1] / 'configs'
    paths = [path for path in folder.glob('*') if path.suffix in ('.py', '.yaml')]
    assert paths
    for path in paths:
        validate(load_config(path))


def test_the_listed_keys_are_those_that_the_constructors_take():
    from qvlkit.config import keys
    from qvlkit.data.loader import PackedLoader
    from qvlkit.data.processor import Processor
    handed = {'tokenizer', 'geometry', 'num_tokens', 'token_grid', 'position_ids', 'plan'}
    from qvlkit.data.datasets.mixture import PART_KEYS
    from qvlkit.data.processor import LIMITS
    own = set(inspect.signature(Processor).parameters) - handed - {'seed', 'limits'}
    assert own | set(LIMITS) == set(keys.PROCESSOR) and set(LIMITS) == set(keys.LIMITS)
    assert keys.MIXTURE_PART == PART_KEYS
    assert set(keys.LOADER) - set(constructor_keys(PackedLoader)) == set()
    from_elsewhere = {'dataset', 'processor', 'collate', 'cost', 'accumulation', 'seed', 'quarantine', 'pin_memory',
                      'rank', 'world_size'}
    assert set(constructor_keys(PackedLoader)) - set(keys.LOADER) == from_elsewhere
