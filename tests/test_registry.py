"""The registries: closed names, checked keys, injected values."""
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


def test_near_names():
    assert near_names('merger', ['Merger', 'zebra']) == ", did you mean 'Merger'?"
    assert near_names('qqq', ['Merger']) == ''


def test_every_registry_holds_parts_whose_names_differ():
    for registry in ALL:
        assert registry.names(), f'nothing is registered as a {registry.name}'
    assert 'PatchMerger' in MERGERS.names()
