"""DPO against two plain forwards, the reference live and stored, resuming, and each pair seen once.

Shapes: n pairs, S targets.
"""
import copy
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from qvlkit.cli import train as train_cli
from qvlkit.config import save_config
from qvlkit.data.collate import collate
from qvlkit.engine.optimizers import AdamW
from qvlkit.engine.schedules import WarmupConstant
from qvlkit.losses.preference import DPOLoss
from qvlkit.models.builder import build_model
from qvlkit.train.hooks.base import Hook
from qvlkit.train.recipe import build_stage, run_recipe
from qvlkit.train.reference import LiveReference, StoredReference, weights_hash

COLOURS = ['red', 'green', 'blue', 'white']
WORDS = ['a cat', 'some dog or other', 'yes', 'it is hard to say', 'no, not at all', 'seven']


class Stop(Exception):
    pass


class StopAfter(Hook):
    def __init__(self, step):
        self.step = step

    def after_train_iter(self, trainer):
        if trainer.step == self.step:
            raise Stop


@pytest.fixture(scope='session')
def pairs_file(tmp_path_factory):
    """24 pairs, every second one with a picture; answers of different lengths."""
    folder = tmp_path_factory.mktemp('pairs')
    random, records = np.random.default_rng(0), []
    for index in range(24):
        record = dict(conversations=[{'from': 'human', 'value': f'What is number {index}?'}],
                      chosen={'from': 'gpt', 'value': f'It is {COLOURS[index % 4]}.'},
                      rejected={'from': 'gpt', 'value': f'{WORDS[index % 6]}, {WORDS[(index + 1) % 6]}'})
        if index % 2:
            size = (56 + 28 * (index % 3), 84)
            Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f'{index}.png')
            record['images'] = [f'{index}.png']
            record['conversations'][0]['value'] = '<image>' + record['conversations'][0]['value']
        records.append(record)
    (folder / 'pairs.json').write_text(json.dumps(records))
    return folder / 'pairs.json'


@pytest.fixture
def dpo_config(small, pairs_file):
    """trainer settings, stage settings -> config with a stage 'dpo'."""
    def make(trainer=None, path=None, **stage):
        config = small()
        sft = copy.deepcopy(config['stages']['sft'])
        config['stages'] = dict(dpo={**sft, **dict(
            trainer=dict(type='DPOTrainer', **trainer or {}),
            data=dict(type='ConversationDataset', path=str(path or pairs_file)),
            loader=dict(row_length=240, window=24, num_workers=0), max_steps=6,
            parts=dict(vision_encoder=dict(trainable=False))), **stage})
        config['run'] = ['dpo']
        return config
    return make


@pytest.fixture
def build_dpo(dpo_config, tmp_path):
    """As `dpo_config` -> trainer in `dtype`, its reference too."""
    def make(trainer=None, dtype=torch.float64, work_dir=None, seed=0, **stage):
        built = build_stage(dpo_config(trainer, **stage), 'dpo', work_dir or tmp_path / 'dpo')
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in built.model.named_parameters():  # under which no softmax is flat
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * parameter.shape[1] ** -0.5 if parameter.ndim == 2 else
                                0.2 * noise + (0 if name.endswith('bias') else 1))
        built.model.to(dtype)
        if built.live is not None:
            built.live = LiveReference(built.model)
        return built
    return make


def moved(trainer, scale=0.05):
    """Change what trains, so that policy and reference differ."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))
    return trainer


def batch_of(trainer, indices):
    samples = [trainer.loader.processor.encode(trainer.loader.dataset[index]) for index in indices]
    return trainer.loader.rows.collate(samples)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def plain_log_probabilities(trainer, model, index):
    """Both answers of one pair by two plain forwards of whole conversations -> two (length,)."""
    sample = trainer.loader.dataset[index]
    found = []
    for turns in (sample.turns, sample.turns[:-1] + sample.rejected):
        sample.turns = turns
        row = collate([trainer.processor.encode(sample)], plan=trainer.processor.plan, geometry=model.geometry)
        log_probabilities = model.logits(row)[row.target_rows].log_softmax(-1)
        found.append(log_probabilities.gather(1, row.target_ids[:, None]).squeeze(1))
    return found


def plain_sums(trainer, model, indices):
    """(n, 2)"""
    return torch.stack([torch.stack([answer.sum() for answer in plain_log_probabilities(trainer, model, index)])
                        for index in indices])


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize('chunk_rows', [7, 1024])
def test_a_row_of_pairs_equals_two_plain_forwards(build_dpo, dtype, tolerance, chunk_rows):
    """Text and pictures in one row: log-probabilities of tokens, of answers, the loss, and every gradient."""
    trainer = moved(build_dpo(dict(chunk_rows=chunk_rows), dtype=dtype))
    indices = [0, 1, 2, 3, 5]
    batch = batch_of(trainer, indices)
    with torch.no_grad():
        each, sums = trainer.answer_sums(trainer.model, batch, trainer.model(batch))
    plain = [plain_log_probabilities(trainer, trainer.model, index) for index in indices]
    expected = torch.cat([answer for both in plain for answer in both])
    torch.testing.assert_close(each, expected.detach(), rtol=0, atol=tolerance * max(1, expected.abs().max().item()))
    policy = plain_sums(trainer, trainer.model, indices)
    torch.testing.assert_close(sums, policy.detach(), rtol=1e-10 if dtype == torch.float64 else 1e-6, atol=0)
    with torch.no_grad():
        reference = plain_sums(trainer, trainer.live.model, indices)
    assert float((reference - policy).abs().min()) > 1e-3
    loss = DPOLoss()(policy, reference, batch.answer_lengths).sum()
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    expected_gradients = torch.autograd.grad(loss, trained)
    found = trainer.compute_loss(batch)
    assert found.item() == pytest.approx(loss.item(), rel=tolerance)
    for gradient, wanted in zip(torch.autograd.grad(found, trained), expected_gradients):
        assert float((gradient - wanted).norm()) <= 10 * tolerance * max(float(wanted.norm()), 1e-3)
        assert float(wanted.norm()) > 0


@pytest.mark.parametrize('attention', ['eager', 'sdpa'])
def test_answers_do_not_see_each_other(build_dpo, attention):
    """Another rejected answer, or a longer one, leaves the chosen one's numbers as they are, bit for bit; and the other
    way round."""
    trainer = build_dpo(dtype=torch.float32)
    trainer.model = build_model({**trainer.config['model'], 'attention': attention}, vocab_size=384, seed=1)
    for changed in (0, 1):
        found = []
        for text in ('it is hard to say', 'it was hard to say', 'it is hard to say whether it is'):
            sample = trainer.loader.dataset[1]
            (sample.turns[-1], sample.rejected[0])[changed].content[:] = [text]
            batch = trainer.loader.rows.collate([trainer.loader.processor.encode(sample)])
            with torch.no_grad():
                found.append(trainer.answer_sums(trainer.model, batch, trainer.model(batch))[1][0])
        for other in found[1:]:
            assert torch.equal(found[0][1 - changed], other[1 - changed])
            assert not torch.equal(found[0][changed], other[changed])


def count_calls(module, calls):
    module.register_forward_pre_hook(lambda module, arguments: calls.append(arguments[0].shape[0]))


@pytest.mark.parametrize('trains', [False, True])
def test_one_vision_pass_serves_everything(build_dpo, trains):
    trainer = build_dpo(parts=dict(vision_encoder=dict(trainable=trains)))
    policy, reference = [], []
    count_calls(trainer.model.vision_encoder, policy)
    if trains:  # then the reference has another encoder, which makes its own pass
        assert trainer.live.model.vision_encoder is not trainer.model.vision_encoder
        count_calls(trainer.live.model.vision_encoder, reference)
    else:
        assert trainer.live.model.vision_encoder is trainer.model.vision_encoder
    batch = batch_of(trainer, [1, 3, 5])
    trainer.compute_loss(batch)
    assert policy == [sum(np.prod(grid) for grid in batch.vision_plan.grids)]
    assert len(batch.vision_plan.grids) == 3 and len(reference) == trains


def test_an_encoder_that_trains_is_held_to_its_own_start(build_dpo):
    trainer = moved(build_dpo(parts={}))
    batch = batch_of(trainer, [1, 3])
    with torch.no_grad():
        expected = plain_sums(trainer, trainer.live.model, [1, 3])
        found = trainer.reference_sums(batch, trainer.model.encode(batch))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_frozen_encoder_has_no_gradient_and_stays(build_dpo):
    trainer = build_dpo(dtype=torch.float32)
    before = weights(trainer)
    trainer.compute_loss(batch_of(trainer, [1, 2])).backward()
    assert all(parameter.grad is None for parameter in trainer.model.vision_encoder.parameters())
    assert all(parameter.grad is not None for parameter in trainer.model.language_model.parameters())
    assert all(parameter.grad is None for part in trainer.live.copies.values() for parameter in part.parameters())
    trainer.train_step([batch_of(trainer, [1, 2])])
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith('vision_encoder'), name
    for name, value in trainer.live.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group['params']}
    assert not any(id(parameter) in held for part in trainer.live.copies.values() for parameter in part.parameters())
    assert set(trainer.model.state_dict()) == set(before)


def test_the_loss_is_the_mean_over_pairs_and_the_metrics_are_theirs(build_dpo):
    trainer = moved(build_dpo(dict(loss=dict(type='DPOLoss', beta=0.3))))
    rows = [batch_of(trainer, [0, 1, 2]), batch_of(trainer, [3])]
    with torch.no_grad():
        policy = torch.cat([trainer.policy_sums(row) for row in rows])
        reference = torch.cat([trainer.reference_sums(row, trainer.model.encode(row)) for row in rows])
    lengths = torch.cat([row.answer_lengths for row in rows])
    ratios = policy - reference
    margins = 0.3 * (ratios[:, 0] - ratios[:, 1])
    metrics = trainer.train_step(rows)
    expected = dict(loss=-torch.nn.functional.logsigmoid(margins).mean(), reward_margin=margins.mean(),
                    reward_accuracy=(margins > 0).double().mean(), logp_chosen=policy[:, 0].mean(),
                    logp_rejected=policy[:, 1].mean(), kl=ratios.sum() / lengths.sum())
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value.item(), rel=1e-9), name
    assert metrics['num_targets'].item() == 4


def test_losses_by_source_are_of_targets(build_dpo):
    trainer = build_dpo()
    batch = batch_of(trainer, [0, 1])
    with torch.no_grad():
        each = trainer.answer_sums(trainer.model, batch, trainer.model(batch))[0]
    trainer.train_step([batch])
    assert trainer.group_sums.sum(0).tolist() == pytest.approx([-each.sum().item(), batch.num_targets])


@pytest.mark.parametrize('loss', [dict(type='IPOLoss'), dict(type='HingeLoss'), dict(type='CDPOLoss'),
                                  dict(type='LengthNormalizedDPOLoss'),
                                  dict(type='PlusSFT', loss=dict(type='DPOLoss'), weight=0.2)], ids=lambda x: x['type'])
def test_every_loss_trains(build_dpo, loss):
    trainer = build_dpo(dict(loss=loss))
    batch = batch_of(trainer, range(6))
    found = [trainer.train_step([batch]) for _ in range(8)]
    assert found[-1]['loss'].item() < found[0]['loss'].item()
    assert found[0]['reward_margin'].item() == 0 < found[-1]['reward_margin'].item()
    assert (found[0]['reward_accuracy'].item(), found[-1]['reward_accuracy'].item()) == (0.5, 1.0)


def steps(trainer, count=3):
    trainer.begin_reference()
    rows = [next(iter(trainer.loader.once())) for _ in range(count)]
    return [{name: value.item() for name, value in trainer.train_step(row).items() if hasattr(value, 'item')}
            for row in rows]


def test_stored_equals_live(build_dpo, tmp_path):
    live = build_dpo(work_dir=tmp_path / 'live')
    stored = build_dpo(dict(reference='stored'), work_dir=tmp_path / 'stored')
    assert stored.live is None
    found, expected = steps(stored), steps(live)
    assert expected[-1]['reward_margin'] != 0
    for row, wanted in zip(found, expected):
        assert row.pop('flops') < wanted.pop('flops')  # the reference's pass was made before
        for name, value in wanted.items():
            assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-10), name
    for name, value in stored.model.state_dict().items():
        torch.testing.assert_close(value, live.model.state_dict()[name], rtol=0, atol=1e-10)
    assert len(stored.stored.places) == 24
    assert {path.name for path in (tmp_path / 'stored').iterdir()} == {'reference.safetensors', 'reference.json'}


def test_a_store_serves_again_and_refuses_another_model(build_dpo, tmp_path, monkeypatch):
    path = tmp_path / 'shared' / 'reference.safetensors'
    settings = dict(reference='stored', reference_path=str(path))
    first = build_dpo(settings)
    first.begin_reference()
    again = build_dpo(settings)
    monkeypatch.setattr(again, 'policy_sums', lambda batch: pytest.fail('computed again'))
    again.begin_reference()
    assert torch.equal(again.stored.numbers, first.stored.numbers)
    other = build_dpo(settings)
    with torch.no_grad():
        next(other.model.vision_encoder.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(ValueError, match='was computed with weights .* delete the file to compute it again'):
        other.begin_reference()
    limits = build_dpo(settings)
    limits.processor.all_limits['max_pixels'] = 56 * 56
    with pytest.raises(ValueError, match='was computed with limits'):
        limits.begin_reference()


@pytest.mark.parametrize('change', ['picture', 'text'])
def test_changed_data_are_named(build_dpo, pairs_file, tmp_path, change):
    folder = tmp_path / 'data'
    shutil.copytree(pairs_file.parent, folder)
    settings = dict(reference='stored', reference_path=str(tmp_path / 'reference.safetensors'))
    build_dpo(settings, path=folder / 'pairs.json').begin_reference()
    if change == 'picture':
        with Image.open(folder / '3.png') as picture:
            picture.load()
        picture.putpixel((0, 0), tuple(255 - value for value in picture.getpixel((0, 0))))
        picture.save(folder / '3.png')
    else:
        records = json.loads((folder / 'pairs.json').read_text())
        records[3]['rejected']['value'] += '!'
        (folder / 'pairs.json').write_text(json.dumps(records))
    trainer = build_dpo(settings, path=folder / 'pairs.json')
    trainer.begin_reference()
    trainer.train_step([batch_of(trainer, [1, 2])])
    with pytest.raises(ValueError, match=r'pairs\.json\[3\]: .*reference\.safetensors has no reference'):
        trainer.train_step([batch_of(trainer, [2, 3])])


def test_an_unfinished_store_is_computed_again(build_dpo, tmp_path):
    trainer = build_dpo(dict(reference='stored'))
    trainer.begin_reference()
    (tmp_path / 'dpo' / 'reference.json').unlink()
    assert not StoredReference.exists(trainer.reference_path)
    trainer.begin_reference()
    assert StoredReference.exists(trainer.reference_path)
    (tmp_path / 'dpo' / 'reference.json').write_text('{')
    with pytest.raises(ValueError, match='reference.json: not readable as JSON'):
        trainer.begin_reference()


def final(folder):
    from safetensors.torch import load_file
    return {f'{file}: {name}': tensor.numpy().tobytes() for file in ('model', 'optimizer')
            for name, tensor in load_file(folder / 'dpo' / 'step_6' / f'{file}.safetensors').items()}


@pytest.mark.parametrize('reference', ['live', 'stored'])
def test_a_stop_and_a_resume_are_bit_equal_to_no_stop(dpo_config, tmp_path, losses, reference):
    """A resume does not read the stage before: the reference has to come from the stage's own folder."""
    before = build_stage(dpo_config(hooks={}), 'dpo', tmp_path / 'before')
    moved(before, 0.02).save()
    config = dpo_config(dict(reference=reference))
    run_recipe(config, work_dir=tmp_path / 'straight', load_from=str(tmp_path / 'before'))
    trainer = build_stage(config, 'dpo', tmp_path / 'resumed' / 'dpo', load_from=str(tmp_path / 'before'))
    trainer.hooks.append(StopAfter(4))
    with pytest.raises(Stop):
        trainer.fit()
    run_recipe(config, work_dir=tmp_path / 'resumed', resume=True)
    assert len(losses(tmp_path / 'straight' / 'dpo')) == 6
    assert losses(tmp_path / 'resumed' / 'dpo') == losses(tmp_path / 'straight' / 'dpo')
    assert final(tmp_path / 'resumed') == final(tmp_path / 'straight')


def test_a_resume_without_the_start_weights_is_refused(dpo_config, tmp_path):
    config = dpo_config(max_steps=4)
    run_recipe(config, work_dir=tmp_path)
    start = tmp_path / 'dpo' / 'start_weights.safetensors'
    shutil.move(start, tmp_path / 'kept')
    config['stages']['dpo']['max_steps'] = 6
    (tmp_path / 'dpo' / 'summary.json').unlink()  # by which the stage is finished
    with pytest.raises(ValueError, match='start_weights.safetensors is missing'):
        run_recipe(config, work_dir=tmp_path, resume=True)
    other = moved(build_stage(config, 'dpo', tmp_path / 'other'))
    LiveReference(other.model).save(start)
    with pytest.raises(ValueError, match='makes the reference .* but the run that stopped had'):
        run_recipe(config, work_dir=tmp_path, resume=True)


class Seen(Hook):
    def __init__(self):
        self.ids = []

    def after_train_iter(self, trainer):
        self.ids += [name for row in trainer.rows for name in row.sample_ids]


def test_each_pair_is_seen_once(dpo_config, tmp_path):
    trainer = build_stage(dpo_config(max_steps=50), 'dpo', tmp_path / 'dpo')
    trainer.hooks = [seen := Seen()]
    trainer.fit()
    assert len(seen.ids) == len(set(seen.ids)) == 24 and trainer.step < 50
    endless = build_stage(dpo_config(dict(allow_repeats=True), max_steps=12), 'dpo', tmp_path / 'endless')
    endless.hooks = [seen := Seen()]
    endless.fit()
    assert endless.step == 12 and len(seen.ids) > 24 == len(set(seen.ids))


def test_more_than_one_epoch_needs_to_be_meant(dpo_config, pairs_file, tmp_path):
    def mixture(epochs):
        part = dict(dataset=dict(type='ConversationDataset', path=str(pairs_file)))
        inner = dict(type='Mixture', parts=dict(pairs={**part, **epochs}))
        return dict(type='Mixture', parts=dict(a=part, b=dict(dataset=inner)))
    for epochs, drawn in (({}, 24), (dict(epochs=0.5), 12)):
        trainer = build_stage(dpo_config(data=mixture(epochs)), 'dpo', tmp_path)
        assert [source.draws for source in trainer.loader.mixture.sources] == [24, drawn]
    with pytest.raises(ValueError, match=r'stages\.dpo\.data\.parts\.b\.dataset\.parts\.pairs\.epochs: each pair is '
                       r'seen once, but this is 2; say stages\.dpo\.trainer\.allow_repeats=True'):
        build_stage(dpo_config(data=mixture(dict(epochs=2))), 'dpo', tmp_path)
    build_stage(dpo_config(dict(allow_repeats=True), data=mixture(dict(epochs=2))), 'dpo', tmp_path)


def test_pairs_in_their_own_order(dpo_config, tmp_path):
    loader = dict(row_length=300, window=24, num_workers=0, shuffle=False)
    trainer = build_stage(dpo_config(loader=loader), 'dpo', tmp_path)
    assert [source.order for source in trainer.loader.mixture.sources] == ['sequential']


@pytest.mark.parametrize('settings, message', [
    (dict(loss=dict(type='LinearCrossEntropy')), 'LinearCrossEntropy is no loss of preference pairs'),
    (dict(reference='life'), "trainer.reference: expected one of live, stored, got 'life', did you mean 'live'"),
    (dict(chunk_rows=0), 'trainer.chunk_rows'), (dict(max_answer_tokens=0), 'trainer.max_answer_tokens')])
def test_bad_settings_are_named(dpo_config, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        build_stage(dpo_config(settings), 'dpo', tmp_path)


def test_conversations_are_no_pairs(dpo_config, tmp_path):
    (tmp_path / 'chat.json').write_text(json.dumps([{'messages': [
        {'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]}]))
    with pytest.raises(ValueError, match=r'chat\.json\[0\]: it has no rejected answer'):
        run_recipe(dpo_config(path=tmp_path / 'chat.json'), work_dir=tmp_path / 'run')


@pytest.mark.parametrize('reference', ['live', 'stored'])
def test_a_step_asks_the_device_for_nothing(build_dpo, reference):
    trainer = build_dpo(dict(reference=reference), dtype=torch.float32)
    trainer.begin_reference()
    rows = [batch_of(trainer, [0, 1]), batch_of(trainer, [2])]
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer.model = build_model(trainer.config['model'], vocab_size=384)
        if trainer.live is not None:
            trainer.live = LiveReference(trainer.model)
        trainer.optimizer = AdamW(trainer.model.parameters(), lr=0.1)
        trainer.schedule = WarmupConstant(trainer.optimizer, max_steps=8)
        metrics = trainer.train_step(rows)
    assert {'loss', 'reward_margin', 'kl'} <= set(metrics)


@pytest.mark.parametrize('reference', ['live', 'stored'])
def test_a_dry_run_rehearses_a_row_of_pairs(dpo_config, tmp_path, capsys, reference):
    save_config(dpo_config(dict(reference=reference)), tmp_path / 'dpo.json')
    assert train_cli.main([str(tmp_path / 'dpo.json'), '--dry-run', '--work-dir', str(tmp_path / 'run')]) == 0
    assert 'stage dpo' in capsys.readouterr().out
    assert not (tmp_path / 'run').exists()


def test_a_store_that_is_not_open_is_no_reference(build_dpo):
    trainer = build_dpo(dict(reference='stored'))
    with pytest.raises(ValueError, match='the reference is stored when training begins'):
        trainer.train_step([batch_of(trainer, [0])])


def with_adapters(trainer, zero=True):
    peft = pytest.importorskip('peft')
    config = peft.LoraConfig(r=2, target_modules=['q_proj', 'v_proj'], init_lora_weights=zero)
    peft.inject_adapter_in_model(config, trainer.model.language_model)
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_('lora_' in name)
    trainer.model.to(next(trainer.model.merger.parameters()).dtype)
    return trainer


def test_with_adapters_the_reference_is_the_model_without_them(build_dpo):
    trainer = build_dpo()
    batch = batch_of(trainer, [0, 1, 3])
    bare = trainer.policy_sums(batch)
    start = weights_hash(trainer.model)
    with_adapters(trainer, zero=False)
    trainer.live = LiveReference(trainer.model)
    assert not trainer.live.copies and trainer.live.shares_features
    features = trainer.model.encode(batch)
    assert torch.equal(trainer.reference_sums(batch, features), bare)
    assert float((trainer.policy_sums(batch) - bare).abs().min()) > 1e-6
    reference, policy = trainer.start_sums(batch)
    assert torch.equal(reference, bare) and torch.equal(policy, trainer.policy_sums(batch))
    trainer.compute_loss(batch).backward()
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in trainer.model.named_parameters() if 'lora_' in name} == {
        name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    before = weights_hash(trainer.model)
    assert before != start  # peft renames the layers below the adapters
    moved(trainer)
    assert weights_hash(trainer.model) == before


def test_a_part_that_trains_beside_adapters_is_copied(build_dpo):
    trainer = with_adapters(build_dpo())
    trainer.model.merger.requires_grad_(True)
    trainer.live = LiveReference(trainer.model)
    assert set(trainer.live.copies) == {'merger'}


@pytest.mark.parametrize('encoder_trains', [False, True])
def test_operations_of_a_step_count_the_live_reference_forward(build_dpo, encoder_trains):
    parts = dict(vision_encoder=dict(trainable=encoder_trains))
    live, stored = (build_dpo(dict(reference=kind), parts=parts) for kind in ('live', 'stored'))
    batch = batch_of(live, [1, 3])
    by_part = {part.part: part for part in live.part_flops(batch)}
    ran = ['merger', 'language_model', *['vision_encoder'] * encoder_trains]
    assert by_part['reference'].total == sum(by_part[part].forward for part in ran)
    assert live.flops(batch) == stored.flops(batch) + by_part['reference'].total
    assert stored.flops(batch) == sum(by_part[part].forward * (3 if part in ran else 1) for part in by_part
                                      if part != 'reference')
