"""config.json of Hugging Face <-> our `model` config.

Source: Qwen2_5_VLConfig of transformers 4.49 to 5.24: the flat form of the released files (text keys at the top) and
the nested form (`text_config`, `vision_config`). A key that is absent has the reference's default, which is seldom
what the released models use (vision hidden_size 3584, tokens_per_second 4, rms_norm_eps 1e-5).

`read_values` brings either form into one flat table, {'vision_config.depth': 32, ...}, on which all else works.
"""
import copy
import inspect
import math
from collections.abc import Mapping
from typing import Any

from qvlkit.registry import LANGUAGE_MODELS, MERGERS, POSITION_ENCODINGS, VISION_ENCODERS, near_names

MODEL_TYPE = 'qwen2_5_vl'
SLOTS = {'vision_encoder': (VISION_ENCODERS, 'Qwen25ViT'), 'merger': (MERGERS, 'PatchMerger'),
         'position_encoding': (POSITION_ENCODINGS, 'AbsoluteTimeMRoPE'),
         'language_model': (LANGUAGE_MODELS, 'Qwen2Decoder')}
SECTIONS, THETA, TIED = 'text_config.rope.mrope_section', 'text_config.rope.rope_theta', 'tie_word_embeddings'
OUT_WIDTH = 'vision_config.out_hidden_size'

# key in config.json: (the reference's default, our slot, our key)
FIELDS: dict[str, tuple[Any, str, str]] = {
    'vision_config.depth': (32, 'vision_encoder', 'depth'),
    'vision_config.hidden_size': (3584, 'vision_encoder', 'width'),
    'vision_config.intermediate_size': (3420, 'vision_encoder', 'feed_forward_width'),
    'vision_config.num_heads': (16, 'vision_encoder', 'num_heads'),
    'vision_config.in_channels': (3, 'vision_encoder', 'in_channels'),
    'vision_config.patch_size': (14, 'vision_encoder', 'patch_size'),
    'vision_config.temporal_patch_size': (2, 'vision_encoder', 'temporal_patch_size'),
    'vision_config.window_size': (112, 'vision_encoder', 'window_size'),
    'vision_config.fullatt_block_indexes': ([7, 15, 23, 31], 'vision_encoder', 'full_attention_blocks'),
    'vision_config.spatial_merge_size': (2, 'merger', 'merge_size'),
    'vision_config.tokens_per_second': (4, 'position_encoding', 'tokens_per_second'),
    'text_config.vocab_size': (152064, 'language_model', 'vocab_size'),
    'text_config.hidden_size': (8192, 'language_model', 'width'),
    'text_config.intermediate_size': (29568, 'language_model', 'feed_forward_width'),
    'text_config.num_hidden_layers': (80, 'language_model', 'depth'),
    'text_config.num_attention_heads': (64, 'language_model', 'num_heads'),
    'text_config.num_key_value_heads': (8, 'language_model', 'num_kv_heads'),
    'text_config.rms_norm_eps': (1e-5, 'language_model', 'norm_eps'),
    SECTIONS: ([16, 24, 24], 'position_encoding', 'sections'),
    THETA: (1e6, 'position_encoding', 'theta'),
    TIED: (False, 'language_model', 'tie_embeddings'),
}
_LISTS, _FLOATS = {'vision_config.fullatt_block_indexes', SECTIONS}, {'text_config.rms_norm_eps', THETA}
_ALIASES = {'vision_config.num_heads': 'num_attention_heads', 'vision_config.depth': 'num_hidden_layers'}

# Switches of the reference that change its arithmetic: the only values that our parts compute.
_VISION_FIXED = {'hidden_act': ('silu',), 'model_type': ('qwen2_5_vl', 'qwen2_5_vl_vision')}
_TEXT_FIXED = {'hidden_act': ('silu',), 'use_sliding_window': (False, None), 'attention_dropout': (0, 0.0, None),
               'attention_bias': (True,), 'mlp_bias': (False,), 'model_type': ('qwen2_5_vl', 'qwen2_5_vl_text')}
# Constructor arguments of our parts that the reference has welded in.
_WELDED = {'vision_encoder': {'norm_eps': 1e-6}, 'merger': {'norm_eps': 1e-6}}


def model_from_config(config: Mapping) -> dict:
    """The content of a config.json -> our `model` config, complete.

    Raises:
        ValueError: Another model family, a switch that our parts do not compute, or a value of the wrong kind; the
            message names the key and the value.
    """
    values = read_values(config)
    model: dict[str, Any] = {slot: {'type': part} for slot, (_, part) in SLOTS.items()}
    for key, (_, slot, ours) in FIELDS.items():
        model[slot][ours] = values[key]
    if model['vision_encoder']['in_channels'] == 3:
        del model['vision_encoder']['in_channels']  # the part's own default
    model['attention'] = 'sdpa'
    return model


def read_values(config: Mapping) -> dict[str, Any]:
    """Either form of config.json -> one flat table of what our parts need, defaults filled in. Raises as above."""
    _check_family(config)
    sections = _sections(config)
    for name, fixed in (('vision_config', _VISION_FIXED), ('text_config', _TEXT_FIXED)):
        _check_fixed(name, sections[name], fixed)
    if config.get('quantization_config') is not None:
        raise ValueError(f'config.json: quantization_config: {config["quantization_config"]!r}: quantized checkpoints '
                         'are not read; expected the full-precision one')
    values = {}
    for key, (default, *_) in FIELDS.items():
        section, _, name = key.partition('.')
        if section in sections and not name.startswith('rope.'):
            found = sections[section]
            values[key] = found.get(name, found.get(_ALIASES.get(key), default))
    if values['text_config.num_key_value_heads'] is None:
        values['text_config.num_key_value_heads'] = values['text_config.num_attention_heads']
    values[SECTIONS], values[THETA] = _rope(sections['text_config'])
    values[TIED] = bool(config.get(TIED)) or bool(sections['text_config'].get(TIED))
    values = {key: _checked(f'config.json: {key}', value, key) for key, value in values.items()}
    _check_widths(values, sections)
    return values | {OUT_WIDTH: values['text_config.hidden_size']}


def values_from_model(model: Mapping, *, vocab_size: int | None = None) -> dict[str, Any]:
    """Our `model` config -> the flat table, with the defaults of our parts filled in.

    Args:
        vocab_size: Rows of the embedding, where the config leaves them to the tokenizer.

    Raises:
        ValueError: A part or a setting that the architecture of Hugging Face lacks.
    """
    complete = {slot: _complete(slot, model.get(slot)) for slot in SLOTS}
    if vocab_size is not None:
        complete['language_model']['vocab_size'] = vocab_size
    values = {}
    for key, (_, slot, ours) in FIELDS.items():
        if complete[slot].get(ours) is None:
            raise ValueError(f'model.{slot}.{ours}: a value is needed for {key} of config.json')
        values[key] = _checked(f'model.{slot}.{ours}', complete[slot][ours], key)
    return values | {OUT_WIDTH: values['text_config.hidden_size']}


def updated_config(base: Mapping | None, values: Mapping[str, Any], *, dtype: str,
                   token_ids: Mapping[str, int] | None = None) -> Mapping:
    """The config.json to write: `base` itself if it says what it should, otherwise a copy with the changes.

    Args:
        base: Content of the config.json that the model came from; None writes a new one in the released, flat form.
        values: From `values_from_model`.
        dtype: What the weights are stored in, for example 'bfloat16'.
        token_ids: Changed or new special ids, for example {'image_token_id': 151655}.
    """
    config = copy.deepcopy(dict(base)) if base is not None else _new_config()
    before = read_values(base) if base is not None else {}
    if any(before.get(key) != values[key] for key in values if key.startswith('vision_config.')):
        config['vision_config'] = config.get('vision_config') or {}
    sections = _sections(config)
    text = sections['text_config']
    for key, value in values.items():
        if key in before and before[key] == value:
            continue
        if key in (SECTIONS, THETA):
            rope = _rope_table(text)
            if rope is None:
                rope = text['rope_scaling'] = {'type': 'mrope'}
            inside = key == SECTIONS or 'rope_theta' in rope or rope is text.get('rope_parameters')
            (rope if inside else text)[key.rpartition('.')[2]] = value
        elif key == TIED:
            config[TIED] = value
            if TIED in text:
                text[TIED] = value
        else:
            section, _, name = key.partition('.')
            sections[section].pop(_ALIASES.get(key), None)
            sections[section][name] = value
    if text.get('layer_types') is not None:
        text['layer_types'] = ['full_attention'] * values['text_config.num_hidden_layers']
    for place in (config, *sections.values()):
        for name in ('torch_dtype', 'dtype'):
            if place.get(name) is not None:
                place[name] = dtype
    config.update(token_ids or {})
    return base if config == base else config


def _new_config() -> dict:
    """A config.json in the released form, before any value is written into it."""
    return {'architectures': ['Qwen2_5_VLForConditionalGeneration'], 'model_type': MODEL_TYPE, 'torch_dtype': 'float32',
            'image_token_id': 151655, 'video_token_id': 151656, 'vision_start_token_id': 151652,
            'vision_end_token_id': 151653, 'hidden_act': 'silu', 'attention_dropout': 0.0,
            'max_position_embeddings': 128000, 'use_sliding_window': False, 'rope_theta': 1e6,
            'rope_scaling': {'type': 'mrope'}, 'vision_config': {'model_type': MODEL_TYPE, 'hidden_act': 'silu'}}


def _sections(config: Mapping) -> dict[str, dict]:
    """The tables that hold vision and text keys; the text keys of the flat form are at the top."""
    sections = {}
    for name in ('vision_config', 'text_config'):
        table = config.get(name)
        if table is None:
            table = config if name == 'text_config' else {}
        if not isinstance(table, Mapping):
            raise ValueError(f'config.json: {name}: expected a table, got {table!r}')
        sections[name] = table
    return sections


def _check_family(config: Mapping) -> None:
    if not isinstance(config, Mapping):
        raise ValueError(f'config.json: expected a table, got {type(config).__name__}')
    family = config.get('model_type')
    if family != MODEL_TYPE:
        raise ValueError(f'config.json: model_type: {family!r} is a config of another model family; expected '
                         f'{MODEL_TYPE!r} (Qwen2.5-VL)')


def _check_fixed(name: str, table: Mapping, fixed: Mapping[str, tuple]) -> None:
    """Refuse a switch that our parts do not compute."""
    for key, allowed in fixed.items():
        if key in table and table[key] not in allowed:
            raise ValueError(f'config.json: {name}.{key}: {table[key]!r} is not supported; expected {allowed[0]!r}')
    if name == 'text_config':
        other = [kind for kind in table.get('layer_types') or () if kind != 'full_attention']
        if other:
            raise ValueError(f"config.json: {name}.layer_types: {other[0]!r} is not supported; expected "
                             "'full_attention' everywhere")
        return
    rope = table.get('rope_parameters') or {}
    kind, theta = rope.get('rope_type', 'axial'), rope.get('rope_theta', 10000.0)
    if kind not in ('axial', 'default') or theta != 10000.0:
        raise ValueError(f'config.json: {name}.rope_parameters: {kind!r} with rope_theta {theta!r} is not supported; '
                         "expected 'axial' with 10000.0")


def _rope_table(text: Mapping) -> dict | None:
    """Where the text section keeps its rotary settings; the older name wins, as in the reference."""
    return text.get('rope_scaling') or text.get('rope_parameters')


def _rope(text: Mapping) -> tuple[Any, Any]:
    """The text section -> (mrope_section, rope_theta); ValueError for any scaled kind."""
    rope = _rope_table(text) or {}
    name = 'rope_scaling' if text.get('rope_scaling') else 'rope_parameters'
    if not isinstance(rope, Mapping):
        raise ValueError(f'config.json: text_config.{name}: expected a table, got {rope!r}')
    for key in ('rope_type', 'type'):
        if rope.get(key, 'mrope') not in ('mrope', 'default'):
            raise ValueError(f'config.json: text_config.{name}.{key}: {rope[key]!r} is not supported; '
                             "'mrope' or 'default' (positions without scaling)")
    rotated = rope.get('partial_rotary_factor', 1)
    if rotated not in (1, None):
        raise ValueError(f'config.json: text_config.{name}.partial_rotary_factor: {rotated!r} is not supported; '
                         'expected 1.0')
    theta = rope.get('rope_theta', text.get('rope_theta', FIELDS[THETA][0]))
    return rope.get('mrope_section', FIELDS[SECTIONS][0]), theta


def _checked(where: str, value: Any, key: str) -> Any:
    """`value` in the type that config.json gives to `key`."""
    if key == TIED:
        if isinstance(value, bool):
            return value
        expected = 'true or false'
    elif key in _LISTS:
        if isinstance(value, list | tuple) and all(_is_whole(item) and item >= 0 for item in value):
            return [int(item) for item in value]
        expected = 'a list of whole numbers'
    elif key in _FLOATS:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
            return float(value)
        expected = 'a positive number'
    else:
        if _is_whole(value) and value > 0:
            return int(value)
        expected = 'a positive whole number'
    raise ValueError(f'{where}: expected {expected}, got {value!r}')


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()


def _check_widths(values: Mapping[str, Any], sections: Mapping[str, Mapping]) -> None:
    """Refuse widths that contradict each other."""
    width, heads = values['text_config.hidden_size'], values['text_config.num_attention_heads']
    out = sections['vision_config'].get('out_hidden_size', 3584)
    if out != width:
        raise ValueError(f'config.json: {OUT_WIDTH}: {out!r} (3584 if absent) differs from text_config.hidden_size '
                         f'{width}')
    head_dim = sections['text_config'].get('head_dim')
    if head_dim is not None and head_dim * heads != width:
        raise ValueError(f'config.json: text_config.head_dim: {head_dim!r} is not supported; expected hidden_size '
                         f'{width} / num_attention_heads {heads}')
    if 2 * heads * sum(values[SECTIONS]) != width:
        raise ValueError(f'config.json: {SECTIONS}: {values[SECTIONS]} sums to {sum(values[SECTIONS])}; expected half '
                         f'of hidden_size {width} / num_attention_heads {heads}')


def _complete(slot: str, part: Mapping | None) -> dict:
    """A part's config with its constructor's defaults; ValueError if it is not the released part."""
    registry, expected = SLOTS[slot]
    if not isinstance(part, Mapping) or part.get('type') != expected:
        found = part.get('type') if isinstance(part, Mapping) else part
        raise ValueError(f'model.{slot}.type: {found!r} has no counterpart in the Hugging Face architecture '
                         f'{MODEL_TYPE!r}; only {expected!r} can be exported')
    parameters = inspect.signature(registry.get(expected)).parameters
    complete = {key: item.default for key, item in parameters.items() if item.default is not item.empty}
    for key, value in part.items():
        if key != 'type' and key not in parameters:
            raise ValueError(f'model.{slot}.{key}: {expected} has no argument {key!r}'
                             f'{near_names(key, list(parameters))}')
        complete[key] = value
    for key, value in _WELDED.get(slot, {}).items():
        if complete.get(key, value) != value:
            raise ValueError(f'model.{slot}.{key}: {complete[key]!r} cannot be exported: {MODEL_TYPE!r} has {value!r} '
                             'welded in')
    return complete
