"""The registries: closed names, checked keys, injected values."""
import sys

import pytest

from qvlkit.registry import ALL, MERGERS, Registry, constructor_keys, near_names


@pytest.fixture
def fruits():
    registry = Registry('fruit', 'qvlkit.utils')

    @registry.register_module()
    class Apple:
        """A fruit."""

        def __init__(self, weight, colour='red'):
            self.weight, self.colour = weight, colour

    @registry.register_module()
    class Anything:
        def __init__(self, **settings):
            self.settings = settings

    return registry


def test_build_calls_the_constructor_with_the_config_and_leaves_the_config_alone(fruits):
    config = dict(type='Apple', weight=3)
    apple = fruits.build(config)
    assert (apple.weight, apple.colour) == (3, 'red')
    assert config == dict(type='Apple', weight=3)


def test_injected_values_reach_only_those_who_ask_and_the_config_wins(fruits):
    assert fruits.build(dict(type='Apple'), weight=5, unasked=1).weight == 5
    assert fruits.build(dict(type='Apple', weight=3), weight=5).weight == 3


@pytest.mark.parametrize('config, words', [
    (dict(type='Aple', weight=1), ['bowl.type', "'Aple'", "did you mean 'Apple'", 'Anything']),
    (dict(type='Apple', wieght=1), ['bowl.wieght', "did you mean 'weight'", 'colour']),
    (dict(type='Apple'), ['bowl.weight', 'needs this argument']),
    (dict(weight=1), ['bowl', "'type'"]),
    ('Apple', ['bowl', "'type'", "'Apple'"]),
    (dict(type=None), ['bowl.type', 'None']),
])
def test_errors_name_the_key_and_the_nearest_name(fruits, config, words):
    with pytest.raises(ValueError) as error:
        fruits.build(config, config_key='bowl')
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize('name', ['subprocess.getoutput', 'os.getpid', 'builtins.dict', 'torch.nn.Linear'])
def test_a_dotted_name_is_never_imported(name):
    for registry in ALL:
        with pytest.raises(ValueError, match='is registered as'):
            registry.build(dict(type=name, cmd='true'))


def test_a_name_is_registered_once(fruits):
    class Apple:
        pass
    with pytest.raises(KeyError):
        fruits.register_module()(Apple)


def test_constructor_keys(fruits):
    assert constructor_keys(fruits.get('Apple')) == ['weight', 'colour']
    assert constructor_keys(fruits.get('Anything')) is None


def test_a_module_that_fails_says_so_at_every_question(tmp_path, monkeypatch):
    """One that asks its own registry while it is imported does not start over; what failed can be put right."""
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry('drink', 'drinks_of_a_test')
    monkeypatch.setattr('qvlkit.registry.DRINKS', registry, raising=False)
    folder = tmp_path / 'drinks_of_a_test'
    folder.mkdir()
    part = 'from qvlkit.registry import DRINKS\n@DRINKS.register_module()\nclass {}:\n    pass\n'
    for name, text in (('__init__', ''), ('a_tea', part.format('Tea') + 'assert DRINKS.get("Tea") is Tea\n'),
                       ('b_milk', part.format('Milk') + 'import no_such_module_at_all\n')):
        (folder / f'{name}.py').write_text(text)
    for question in (registry.names, registry.names, lambda: registry.get('Tea')):
        with pytest.raises(ImportError, match='no_such_module_at_all'):
            question()
    (folder / 'b_milk.py').write_text(part.format('Milk'))
    assert registry.names() == ['Milk', 'Tea']
    for name in [name for name in sys.modules if name.startswith('drinks_of_a_test')]:
        monkeypatch.delitem(sys.modules, name)


def test_near_names():
    assert near_names('merger', ['Merger', 'zebra']) == ", did you mean 'Merger'?"
    assert near_names('qqq', ['Merger']) == ''


def test_every_registry_holds_parts_whose_names_differ():
    for registry in ALL:
        assert registry.names(), f'nothing is registered as a {registry.name}'
    assert 'PatchMerger' in MERGERS.names()
