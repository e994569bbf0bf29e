"""Recipes: every swap of a part is one override, and everything that depends on it follows; stages, seeds, refusals."""
import itertools
import json
import shutil

import pytest
import torch
from PIL import Image

from qvlkit import generate, load
from qvlkit.cli import train as train_cli
from qvlkit.structures import SampleError
from qvlkit.train.recipe import build_stage, dataset_texts, run_recipe

# One override each, or a few -> what the placeholders of a picture of 112 x 112 pixels shrink to, and a part that must
# be there.
SWAPS = {
    'model.merger.type=AveragePoolMerger': (1, 'AveragePoolMerger'),
    'model.merger.type=PixelShuffleMerger': (1, 'PixelShuffleMerger'),
    'model.merger.type=ResamplerMerger model.merger.queries=[2,4]': (2, 'ResamplerMerger'),
    'model.vision_encoder.type=HFVisionEncoder model.vision_encoder.architecture=siglip_vision_model '
    'model.vision_encoder.image_size=56': (1, 'HFVisionEncoder'),
    'model.language_model.type=HFDecoder model.language_model.architecture=llama': (1, 'HFDecoder'),
    'model.language_model.type=HFDecoder model.language_model.architecture=qwen2': (1, 'HFDecoder'),
    'model.merger.merge_size=4': (4, 'PatchMerger'),
    'model.vision_encoder.window_size=112': (1, 'Qwen25ViT'),
    'model.vision_encoder.type=Qwen2ViT': (1, 'Qwen2ViT'),
    'model.position_encoding.type=FrameIndexMRoPE': (1, 'FrameIndexMRoPE'),
    'model.position_encoding.type=RoPE1D': (1, 'RoPE1D'),
    'model.attention=eager': (1, 'Qwen2Decoder'),
}


def rows_of(trainer, count=3):
    return list(itertools.islice(trainer.loader, count))


@pytest.mark.parametrize('override', SWAPS)
def test_a_swap_is_one_override(build, override):
    plain, swapped = build(), build(*override.split())
    shrink, part = SWAPS[override]
    assert part in [type(module).__name__ for module in swapped.model.children()]
    for index in range(4):
        before, after = (trainer.processor.encode(trainer.loader.dataset[index])
                         for trainer in (plain, swapped))
        assert len(before.visual_rows) == shrink * len(after.visual_rows) == 16
        assert before.length - len(before.visual_rows) == after.length - len(after.visual_rows)
        assert after.position_ids.shape == (swapped.model.position_encoding.num_axes, after.length)
        pad = swapped.processor.tokenizer.special_id('<|image_pad|>')
        assert (after.token_ids == pad).nonzero().squeeze(1).tolist() == after.visual_rows.tolist()
    before = {name: value.clone() for name, value in swapped.model.named_parameters()}
    for rows in rows_of(swapped):
        assert torch.isfinite(swapped.train_step(rows)['loss'])
    still = [name for name, value in swapped.model.named_parameters() if torch.equal(value, before[name])]
    assert not still


def test_what_a_swap_is_meant_to_change_does_change_the_loss(build):
    """The control of the test above: each override reaches the model that trains."""
    def first_loss(*overrides):
        trainer = build(*overrides)
        return trainer.train_step(next(iter(trainer.loader)))['loss'].item()
    plain = first_loss()
    assert first_loss() == plain
    losses = {override: first_loss(*override.split()) for override in SWAPS}
    assert losses.pop('model.attention=eager') == pytest.approx(plain, rel=1e-5)
    assert losses.pop('model.position_encoding.type=FrameIndexMRoPE') == plain  # the two differ for videos only
    for override in [override for override in losses if 'HFDecoder' in override]:
        # The same arithmetic, and the same first weights in the same order; biases start at zero.
        assert losses.pop(override) == pytest.approx(plain, rel=1e-5)
    assert all(abs(loss - plain) > 1e-4 for loss in losses.values()), (plain, losses)


def test_a_window_that_no_merge_cell_fills_is_refused_with_both_keys(build):
    with pytest.raises(ValueError, match=r'model.vision_encoder.window_size: 70 .*merge_size'):
        build('model.vision_encoder.window_size=70')


def test_boxes_and_pictures_follow_the_merge_size(build):
    """A picture of 84 x 112 pixels is resized to multiples of the merge cell, and its boxes with it."""
    texts = {}
    for merge_size in (2, 4):
        trainer = build(f'model.merger.merge_size={merge_size}', 'stages.sft.data.picture_sizes=[[84,112]]',
                        'stages.sft.data.tasks=[locate]')
        samples = [trainer.processor.encode(trainer.loader.dataset[index]) for index in range(3)]
        assert {sample.grids[0] for sample in samples} == {(1, 8, 6 if merge_size == 2 else 8)}
        texts[merge_size] = [trainer.processor.tokenizer.decode(sample.token_ids) for sample in samples]
    assert texts[2] != texts[4]


def test_every_stage_starts_from_the_weights_of_the_one_before(small, tmp_path):
    config = small('stages.sft.max_steps=2')
    config['stages']['more'] = json.loads(json.dumps(config['stages']['sft']))
    config['stages']['more']['optimizer']['lr'] = 0.0
    run_recipe(config, stages=['sft', 'more'], work_dir=tmp_path)
    first, second = (load(tmp_path / name)[0].state_dict() for name in ('sft', 'more'))
    untrained = build_stage(config, 'sft', tmp_path / 'other').model.state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert any(not torch.equal(value, untrained[name]) for name, value in first.items())


def test_a_resume_goes_on_in_the_stage_that_was_interrupted(small, tmp_path, losses):
    config = small('stages.sft.max_steps=2')
    config['stages']['more'] = json.loads(json.dumps(config['stages']['sft']))
    config['stages']['more'].update(max_steps=4)
    config['stages']['more']['hooks']['checkpoint'].update(interval=2, keep=2)
    run_recipe(config, stages=['sft', 'more'], work_dir=tmp_path / 'straight')
    run_recipe(config, stages=['sft', 'more'], work_dir=tmp_path / 'resumed')
    shutil.rmtree(tmp_path / 'resumed' / 'more' / 'step_4')
    (tmp_path / 'resumed' / 'more' / 'latest').unlink(missing_ok=True)
    done = (tmp_path / 'resumed' / 'sft' / 'log.jsonl').stat().st_mtime_ns
    run_recipe(config, stages=['sft', 'more'], work_dir=tmp_path / 'resumed', resume=True)
    assert losses(tmp_path / 'resumed' / 'more') == losses(tmp_path / 'straight' / 'more')
    assert not (tmp_path / 'resumed' / 'more' / 'log.previous.jsonl').exists()
    assert (tmp_path / 'resumed' / 'sft' / 'log.jsonl').stat().st_mtime_ns == done


def test_load_from_starts_from_those_weights(small, tmp_path):
    run_recipe(small('stages.sft.max_steps=2'), work_dir=tmp_path / 'first')
    trained = load(tmp_path / 'first' / 'sft')[0].state_dict()
    started = build_stage(small(), 'sft', tmp_path / 'second', load_from=str(tmp_path / 'first' / 'sft'))
    assert all(torch.equal(value, trained[name]) for name, value in started.model.state_dict().items())


@pytest.mark.parametrize('extra', [[], ['--resume'], ['--load-from', 'gone']], ids=str)
def test_a_72b_run_that_lacks_everything_ends_with_one_sentence(tmp_path, monkeypatch, capsys, extra):
    monkeypatch.setattr('qvlkit.planning.readiness.device_memory', lambda: (2**34, 'this machine (CPU)'))
    monkeypatch.setattr('qvlkit.train.recipe.build_stage', lambda *_, **__: pytest.fail('something was built'))
    assert train_cli.main(['qwen25vl_72b', '--stages', 'sft', '--work-dir', str(tmp_path / 'run'), *extra]) == 2
    message, = capsys.readouterr().err.splitlines()
    for words in ('error: tokenizer.path: no such folder', 'vqa.dataset.path: no such file',
                  'model: 73,410,777,344 parameters need', 'this machine (CPU) has 16'):
        assert words in message
    assert not (tmp_path / 'run').exists()


def test_weights_that_are_not_there_are_named_before_any_work(small, tmp_path):
    with pytest.raises(FileNotFoundError, match='gone: no such folder'):
        run_recipe(small(), work_dir=tmp_path / 'run', load_from=str(tmp_path / 'gone'))
    assert not (tmp_path / 'run').exists()


def test_a_recipe_names_the_key_that_its_config_lacks(small, tmp_path):
    for key in ('run', 'tokenizer'):
        config = small()
        del config[key]
        with pytest.raises(ValueError, match=f'^{key}: '):
            run_recipe(config, work_dir=tmp_path)


def test_a_mixture_of_conversations_is_ready(small, tmp_path):
    records = [{'messages': [{'role': 'user', 'content': f'{i} + {i}?'}, {'role': 'assistant', 'content': str(2 * i)}]}
               for i in range(32)]
    for name in ('one.json', 'two.json'):
        (tmp_path / name).write_text(json.dumps(records))
    config = small('stages.sft.max_steps=2')
    parts = {name: dict(dataset=dict(type='ConversationDataset', path=str(tmp_path / f'{name}.json')), weight=1.0)
             for name in ('one', 'two')}
    config['stages']['sft']['data'] = dict(type='Mixture', parts=parts)
    run_recipe(config, work_dir=tmp_path / 'run')
    assert (tmp_path / 'run' / 'sft' / 'step_2').is_dir()
    (tmp_path / 'two.json').unlink()
    with pytest.raises(ValueError, match=r'stages\.sft\.data\.parts\.two\.dataset\.path: no such file'):
        run_recipe(config, work_dir=tmp_path / 'again')


def test_a_resume_asks_only_for_what_is_left(small, tmp_path):
    config = small('stages.sft.max_steps=2')
    config['stages']['more'] = json.loads(json.dumps(config['stages']['sft']))
    config['stages']['more']['data'] = dict(type='ConversationDataset', path=str(tmp_path / 'gone.json'))
    with pytest.raises(ValueError, match='stages.more.data.path'):
        run_recipe(config, stages=['sft', 'more'], work_dir=tmp_path / 'run', resume=True)
    assert not (tmp_path / 'run').exists()
    config['stages']['more']['data'], gone = config['stages']['sft']['data'], config['stages']['more']['data']
    run_recipe(config, stages=['sft', 'more'], work_dir=tmp_path / 'run')
    config['stages']['sft']['data'] = gone
    run_recipe(config, stages=['sft', 'more'], work_dir=tmp_path / 'run', resume=True)


def test_one_device_is_refused_where_many_processes_were_started(small, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'of-a-test')
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='SingleDevice is one process'):
        run_recipe(small('strategy.type=SingleDevice'), work_dir=tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_an_unknown_stage_is_named(small, tmp_path):
    with pytest.raises(ValueError, match="no stage is called 'grpo'.*; stages: .*sft"):
        build_stage(small(), 'grpo', tmp_path)


def test_the_checkpoint_of_a_run_answers_by_itself(small_file, tmp_path):
    assert train_cli.main([str(small_file), '--set', 'stages.sft.max_steps=2', '--work-dir', str(tmp_path)]) == 0
    model, processor = load(tmp_path / 'sft')
    question = [{'role': 'user', 'content': [{'type': 'image', 'image': Image.new('RGB', (90, 60), 'red')},
                                             {'type': 'text', 'text': 'What is it?'}]}]
    assert isinstance(generate(model, processor, question, max_new_tokens=4), str)
    assert processor.limits['max_pixels'] == 140 * 140


@pytest.mark.parametrize('override', [override for override in SWAPS if 'HF' in override or 'Resampler' in override])
def test_the_checkpoint_of_a_swapped_part_answers_as_the_model_that_was_trained(small, tmp_path, override):
    config = small('stages.sft.max_steps=2', 'stages.sft.hooks.checkpoint.interval=2', *override.split())
    trainer = build_stage(config, 'sft', tmp_path / 'sft')
    trainer.fit()
    model, processor = load(tmp_path / 'sft')
    question = [{'role': 'user', 'content': [{'type': 'image', 'image': Image.new('RGB', (90, 60), 'red')},
                                             {'type': 'text', 'text': 'What is it?'}]}]
    batch = processor(question, add_generation_prompt=True)
    with torch.no_grad():
        assert torch.equal(model(batch), trainer.model.eval()(batch))
    answer = generate(model, processor, question, max_new_tokens=4)
    assert answer == generate(trainer.model, trainer.processor, question, max_new_tokens=4)


def test_a_tokenizer_learns_from_the_samples_that_can_be_used(build):
    trainer = build()
    dataset = trainer.loader.dataset

    class Broken:
        def __len__(self):
            return len(dataset)

        def __getitem__(self, index):
            if index == 1:
                raise SampleError('file.json[1]', 'cannot be used')
            return dataset[index]
    whole, usable = list(dataset_texts(dataset)), list(dataset_texts(Broken()))
    assert 0 < len(usable) < len(whole)
