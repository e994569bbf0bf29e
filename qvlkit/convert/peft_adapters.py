"""The adapters of a training checkpoint alone, as peft keeps them, for the base model in transformers' spelling.

    adapter_model.safetensors   base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight (r, I) ...
    adapter_config.json         peft's LoraConfig: rank, alpha, dropout, and the layers by name

peft puts them onto what `to_hf` wrote of the checkpoint from which the stage with adapters began:

    peft.PeftModel.from_pretrained(Qwen2_5_VLForConditionalGeneration.from_pretrained(BASE), DST)
"""
import json
from pathlib import Path

from qvlkit.convert.adapted_files import stage_settings
from qvlkit.convert.config_mapping import values_from_model
from qvlkit.convert.folders import new_folder, open_folder
from qvlkit.convert.key_mapping import released_name
from qvlkit.convert.weight_files import WeightFiles
from qvlkit.engine.adapters import DEFAULTS, LORA_A, LORA_B, is_adapter
from qvlkit.engine.checkpoint import write_tensors
from qvlkit.engine.freezing import ever_trains, trainable_schedule

WEIGHTS, CONFIG = 'adapter_model.safetensors', 'adapter_config.json'
PARTS = ('vision_encoder', 'merger', 'language_model')
_MODULES = [('visual.', 'model.visual.'), ('model.', 'model.language_model.')]  # released name -> transformers' module


def export_adapters(source: str | Path, target: str | Path) -> None:
    """Training checkpoint or stage folder -> folder that peft loads.

    Args:
        source: Of a stage with the key `lora` in which nothing but adapters trained.
        target: A new or empty folder.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds no adapters, other weights trained beside them, a part is none of Hugging Face's
            architecture, or `target` is not empty.
    """
    folder = open_folder(source)
    files = WeightFiles(folder.path)
    names = [name for name in files.names() if is_adapter(name)]
    if not names:
        raise ValueError(f'{folder.path}: holds no adapters; expected a checkpoint of a stage with the key lora')
    stage, settings = stage_settings(folder.path)
    _refuse_other_weights(folder.path, stage, settings)
    values_from_model(folder.model, vocab_size=None if 'vocab_size' in folder.model['language_model'] else 1)
    lora = DEFAULTS | settings['lora']
    tensors = {f'base_model.model.{_module(name)}': files.read(name) for name in names}
    layers = sorted({name.removeprefix('base_model.model.').rpartition('.lora_')[0] for name in tensors})
    config = dict(peft_type='LORA', task_type=None, base_model_name_or_path=None, inference_mode=True, bias='none',
                  r=lora['rank'], lora_alpha=lora['alpha'], lora_dropout=lora['dropout'], target_modules=layers)
    with new_folder(target) as partial:
        write_tensors(partial / WEIGHTS, tensors)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')


def _refuse_other_weights(folder: Path, stage: str, settings: dict) -> None:
    """ValueError if adapters alone are not all that the stage has changed."""
    parts = settings.get('parts') or {}
    whole = [part for part in PARTS if part not in settings['lora']['parts'] and ever_trains(
        trainable_schedule((parts.get(part) or {}).get('trainable', True), f'stages.{stage}.parts.{part}'))]
    if whole:
        raise ValueError(f'{folder}: stage {stage!r} trained {" and ".join(whole)} as well, so that its adapters alone '
                         f'are not the model; export all of it with to-hf, or freeze: '
                         f'stages.{stage}.parts.{whole[0]}.trainable=false')


def _module(name: str) -> str:
    """Our name of an adapter's tensor -> peft's, within transformers' model."""
    plain = released_name(name.replace(LORA_A, '.lora_A.weight').replace(LORA_B, '.lora_B.weight'))
    return next((new + plain.removeprefix(old) for old, new in _MODULES if plain.startswith(old)), plain)
