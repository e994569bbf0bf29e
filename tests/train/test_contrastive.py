"""Contrastive training: several rows = one big row, ranks = one process, frozen parts, learning, checkpoints."""
import contextlib
import dataclasses
import itertools
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from qvlkit.data.image_text import collate_image_text
from qvlkit.planning.flops import PairCost
from qvlkit.structures import Measure, SampleError
from qvlkit.train.recipe import build_stage, run_recipe

TEXT = 'stages.sft.towers.text_tower={"type":"TextTransformer","width":32,"depth":1,"num_heads":2}'
TOWERS = ['stages.sft.trainer={"type":"ContrastiveTrainer"}', TEXT, 'stages.sft.towers.width=24',
          'stages.sft.data.tasks=[name]', 'stages.sft.data.picture_sizes=[[84,84],[112,84]]',
          'stages.sft.data.questions_per_picture=1', 'stages.sft.loader.row_length=128',
          'stages.sft.loader.window=40']
SIGLIP = ['stages.sft.trainer.loss={"type":"SigLIP"}', 'stages.sft.towers.bias=-10.0']
CHUNKED = ['stages.sft.trainer.loss={"type":"InfoNCE","chunk_rows":2}']
every_loss = pytest.mark.parametrize('overrides', [[], SIGLIP, CHUNKED], ids=['InfoNCE', 'SigLIP', 'chunked'])


@pytest.fixture
def build_towers(build):
    return lambda *overrides, **options: build(*TOWERS, *overrides, **options)


def pairs(trainer, count):
    return [trainer.loader.processor.encode(trainer.loader.dataset[index]) for index in range(count)]


def rows_of(trainer, cuts, count=11):
    """The same pairs in rows that begin and end at the cuts."""
    samples, processor = pairs(trainer, count), trainer.loader.processor
    return [collate_image_text(samples[a:b], plan=processor.plan, geometry=processor.geometry)
            for a, b in itertools.pairwise([0, *cuts, count])]


def loss_and_gradients(trainer, rows):
    """As the trainer's step makes them, before clipping."""
    found = {}

    def read(parameters, max_norm):
        found.update({name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()
                      if parameter.grad is not None})
        return torch.zeros(())
    trainer.strategy.clip_gradients = read
    metrics = trainer.train_step(rows)
    return metrics, found


@every_loss
def test_several_uneven_rows_are_one_big_row(build_towers, overrides):
    """Loss, every gradient with that of the temperature, and what is noted: in float64."""
    big = build_towers(*overrides, dtype=torch.float64)
    expected, gradients = loss_and_gradients(big, rows_of(big, []))
    assert expected['num_targets'].item() == 11 and 0.5 < expected['loss'].item() < 30
    assert {name.partition('.')[0] for name in gradients} == set(big.model.parts())
    for cuts in ([2, 7], [1, 2, 3]):
        trainer = build_towers(*overrides, dtype=torch.float64)
        metrics, found = loss_and_gradients(trainer, rows_of(trainer, cuts))
        for key in ('loss', 'accuracy', 'scale'):
            assert metrics[key].item() == pytest.approx(expected[key].item(), rel=0, abs=1e-10), key
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-10, msg=name)


def test_rows_that_do_not_see_each_other_are_another_step(build_towers):
    """The control of the test above: without the cache each row would be compared with itself alone."""
    whole, apart = (build_towers(dtype=torch.float64) for _ in range(2))
    apart.prepare_step = lambda rows: None
    expected, gradients = loss_and_gradients(whole, rows_of(whole, [2, 7]))
    metrics, found = loss_and_gradients(apart, rows_of(apart, [2, 7]))
    assert metrics['loss'].item() < expected['loss'].item() - 0.1
    assert all((found[name] - gradients[name]).abs().max() > 1e-8 for name in gradients)


class OneOfRanks:
    """Strategy of one rank among several, in one process: what the others gather is given.

    Gradients do not reach the others here: tests/losses holds those, and the test of the gather below.
    """
    world_size, is_main, rank = 2, True, 0

    def __init__(self, device, sides, first):
        self.device, self.sides, self.first, self.calls = device, sides, first, 0

    def autocast(self):
        return contextlib.nullcontext()

    def gather_rows(self, tensor):
        side = self.sides[self.calls % 2]  # pictures, then captions
        self.calls += 1
        return torch.cat([side[:self.first], tensor, side[self.first + len(tensor):]]), self.first


@every_loss
@pytest.mark.parametrize('cuts', [[[], []], [[2], []], [[1, 3], [2, 5]]], ids=str)
def test_uneven_ranks_are_one_process(build_towers, overrides, cuts):
    """Rank 0 holds 4 pairs, rank 1 seven; each has rows of its own."""
    whole = build_towers(*overrides, dtype=torch.float64)
    expected, _ = loss_and_gradients(whole, rows_of(whole, []))
    trainer = build_towers(*overrides, dtype=torch.float64)
    samples, processor = pairs(trainer, 11), trainer.loader.processor

    def join(part):
        return collate_image_text(part, plan=processor.plan, geometry=processor.geometry)

    with torch.no_grad():
        sides = trainer.model(join(samples))
    total, accuracy = 0.0, 0.0
    trainer.model.eval()
    for first, own, cut in ((0, samples[:4], cuts[0]), (4, samples[4:], cuts[1])):
        trainer.strategy = OneOfRanks(trainer.device, sides, first)
        rows = [join(own[a:b]) for a, b in itertools.pairwise([0, *cut, len(own)])]
        trainer._noted = {}
        trainer.prepare_step(rows)
        total = total + sum(trainer.compute_loss(row).detach() for row in rows)
        accuracy = accuracy + trainer._noted['accuracy'][0]
    assert (total / 11).item() == pytest.approx(expected['loss'].item(), rel=0, abs=1e-10)
    assert (accuracy / 11).item() == pytest.approx(expected['accuracy'].item(), rel=0, abs=1e-12)


def test_gradients_come_back_through_the_gather(build_towers):
    """The cached gradients hold what other ranks' losses say of this rank's rows: here a gather that doubles them."""
    def cached(factor):
        trainer = build_towers(dtype=torch.float64)

        class Doubled(torch.autograd.Function):
            @staticmethod
            def forward(ctx, tensor):
                return tensor.clone()

            @staticmethod
            def backward(ctx, gradient):
                return factor * gradient
        trainer.strategy.gather_rows = lambda tensor: (Doubled.apply(tensor), 0)
        rows = rows_of(trainer, [2, 7])
        trainer.prepare_step(rows)
        return torch.cat([trainer._shares[id(row)].gradients[1] for row in rows])
    once, twice, none = cached(1.0), cached(2.0), cached(0.0)
    torch.testing.assert_close(twice - once, once - none, rtol=0, atol=1e-12)
    assert (twice - once).abs().max() > 1e-3


@pytest.mark.parametrize('accumulation', [1, 3])
@pytest.mark.parametrize('frozen', ['vision_encoder', 'pooling', 'text_tower', 'temperature'])
def test_a_frozen_part_keeps_every_bit_and_the_others_move(build_towers, frozen, accumulation):
    trainer = build_towers(f'stages.sft.parts.{frozen}.trainable=false', f'stages.sft.accumulation={accumulation}')
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for rows in itertools.islice(trainer.loader, 2):
        assert len(rows) == accumulation
        trainer.train_step(rows)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(f'{frozen}.'), name


def test_only_the_temperature_may_train(build_towers):
    trainer = build_towers(*(f'stages.sft.parts.{part}.trainable=false' for part in
                             ('vision_encoder', 'pooling', 'text_tower')), 'stages.sft.accumulation=2')
    before = trainer.model.temperature.log_scale.item()
    trainer.train_step(next(iter(trainer.loader)))
    assert trainer.model.temperature.log_scale.item() != before


def test_dropout_refuses_several_rows(build_towers):
    trainer = build_towers()
    trainer.model.pooling.proj = nn.Sequential(nn.Dropout(0.1), trainer.model.pooling.proj)
    trainer.train_step(rows_of(trainer, []))
    with pytest.raises(ValueError, match=r'stages.sft.accumulation: .*pooling.proj.0 .*p = 0.1'):
        trainer.train_step(rows_of(trainer, [4]))
    trainer.model.pooling.proj[0].p = 0.0
    trainer.train_step(rows_of(trainer, [4]))


def test_the_scale_is_limited(build_towers):
    trainer = build_towers('stages.sft.towers.temperature=100.0')
    with torch.no_grad():
        trainer.model.temperature.log_scale.add_(1)
    assert trainer.train_step(rows_of(trainer, []))['scale'].item() == pytest.approx(100)


def test_without_towers_the_key_is_named(build):
    with pytest.raises(ValueError, match=r'stages.sft.towers: the stage names no towers'):
        build(TOWERS[0])


def test_the_longest_caption_reaches_the_encoder(build_towers):
    assert build_towers('stages.sft.trainer.max_text_tokens=3').loader.processor.max_text_tokens == 3
    with pytest.raises(ValueError, match='trainer.max_text_tokens'):
        build_towers('stages.sft.trainer.max_text_tokens=1')


def test_a_sample_without_a_picture_is_refused_by_name(build_towers):
    trainer = build_towers()
    sample = trainer.loader.dataset[0]
    sample.turns[0].content = ['no picture']
    with pytest.raises(SampleError, match=sample.id.replace('[', r'\[')):
        trainer.loader.processor.encode(sample)


def test_costs_follow_pictures_captions_and_what_trains(build_towers):
    model = build_towers().model
    plain = Measure(6 * 8 // 4 + 5, 1, ((1, 6, 8),))

    def cost(measure=plain, **trains):
        return PairCost(model, trains)(measure)

    text = model.text_tower.flops((5,))
    vision, pooling = model.vision_encoder.flops((1, 6, 8)), model.pooling.flops((1, 6, 8))
    assert cost() == 3 * (text + vision + pooling)
    assert cost(vision_encoder=False) == 3 * text + vision + 3 * pooling
    assert cost(pooling=False) == 3 * text + 3 * vision + 2 * pooling
    assert cost(vision_encoder=False, pooling=False, text_tower=False) == text + vision + pooling
    longer = dataclasses.replace(plain, length=plain.length + 3)
    assert cost(longer) - cost() == 3 * (model.text_tower.flops((8,)) - text)


def test_the_language_model_as_text_tower(build):
    tower = 'stages.sft.towers.text_tower={"type":"LanguageModelTower"}'
    trainer = build(*(tower if override == TEXT else override for override in TOWERS), 'stages.sft.accumulation=2',
                    'stages.sft.parts.language_model.trainable=false')
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train_step(next(iter(trainer.loader)))
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith('language_model.'), name


def test_a_checkpoint_resumes_bit_for_bit_and_hands_over_its_encoder(build_towers, build, tmp_path):
    options = ['stages.sft.accumulation=2', 'stages.sft.hooks.checkpoint=null', 'stages.sft.max_steps=3']
    straight = build_towers(*options, work_dir=tmp_path / 'a')
    straight.fit()
    stopped = build_towers(*options, work_dir=tmp_path / 'b')
    stopped.max_steps = 2
    stopped.fit()
    folder = stopped.save()
    assert set(load_file(folder / 'model.safetensors')) == set(stopped.model.state_dict())
    assert (folder / 'tokenizer.json').is_file() and (folder / 'preprocessor_config.json').is_file()
    resumed = build_towers(*options, work_dir=tmp_path / 'b')
    resumed.resume()
    resumed.fit()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, straight.model.state_dict()[name]), name
    vlm = build_stage(build().config, 'sft', tmp_path / 'c', load_from=dict(vision_encoder=folder))
    for name, value in vlm.model.vision_encoder.state_dict().items():
        assert torch.equal(value, stopped.model.vision_encoder.state_dict()[name]), name


def test_a_recipe_runs_the_stage(small, tmp_path):
    """From the checks before a run to the summary after it; a part that only two towers have is named in `parts`."""
    run_recipe(small(*TOWERS, 'stages.sft.max_steps=2', 'stages.sft.parts.text_tower.lr=0.001'), work_dir=tmp_path)
    summary = json.loads((tmp_path / 'sft' / 'summary.json').read_text())
    assert (summary['trainer'], summary['steps']) == ('ContrastiveTrainer', 2)


def test_training_finds_the_captions_of_new_pictures(build_towers):
    """24 names of drawn shapes: after seconds the right one is found far more often than by chance."""
    held_out = {'type': 'PictureTasks', 'size': 72, 'split': 'held_out', 'tasks': ['name'],
                'picture_sizes': [[84, 84]]}
    trainer = build_towers('stages.sft.data.size=1500', 'stages.sft.max_steps=40', 'stages.sft.optimizer.lr=0.006',
                           'stages.sft.loader.row_length=256', 'stages.sft.loader.window=200',
                           'stages.sft.schedule.warmup_ratio=0.1',
                           f'stages.sft.hooks={{"zero_shot":{{"type":"ZeroShotHook","dataset":{held_out!r}}}}}')
    trainer.fit()
    accuracy, recall = (trainer.results[name] for name in ('zero-shot accuracy', 'retrieval recall@1'))
    assert accuracy['chance'] == pytest.approx(0.125) and recall['chance'] < 0.05
    assert max(accuracy['before'], recall['before']) < 0.16 < 0.25 < min(accuracy['after'], recall['after'])


@pytest.mark.parametrize('frozen', ['', 'vision_encoder', 'text_tower'])
def test_the_operations_of_a_batch_are_those_of_its_pairs(build_towers, frozen):
    """As the loader counts them; and a step shows them, each row once."""
    trainer = build_towers(*[f'stages.sft.parts.{frozen}.trainable=false'] * bool(frozen))
    trains, samples = trainer.trains(), pairs(trainer, 11)
    rows = rows_of(trainer, [4])
    cost = PairCost(trainer.model, trains)
    by_pair = sum(cost(Measure(sample.length, 1, (sample.grid,))) for sample in samples)
    assert sum(map(trainer.flops, rows)) == by_pair > 0
    assert trainer.train_step(rows)['flops'].item() == by_pair
    parts = {part.part: part.backward / part.forward for part in trainer.part_flops(rows[0])}
    assert parts == {part: 0 if part == frozen else 2 for part in ('vision_encoder', 'pooling', 'text_tower')}
