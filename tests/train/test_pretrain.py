"""Pre-training: every text token of a document is learned; the frozen language model stays as it was, bit for bit."""
import itertools

import torch


def documents(build, *overrides, **arguments):
    return build('stages.sft.trainer.type=PretrainTrainer', 'stages.sft.data.type=LongTexts',
                 'stages.sft.data.sentences=[2,4]', *overrides, **arguments)


def test_the_loss_is_that_of_sft_on_the_same_rows(build):
    pretrain, sft = documents(build, dtype=torch.float64), build(
        'stages.sft.data.type=LongTexts', 'stages.sft.data.sentences=[2,4]', dtype=torch.float64)
    for rows, others in itertools.islice(zip(pretrain.loader, sft.loader), 2):
        assert pretrain.compute_loss(rows[0]).item() == sft.compute_loss(others[0]).item()


def test_the_visual_stage_moves_all_but_the_language_model(build):
    trainer = documents(build, 'stages.sft.parts.language_model.trainable=false', 'stages.sft.data.pictures=0.5')
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for rows in itertools.islice(trainer.loader, 2):
        trainer.train_step(rows)
    moved = {name.split('.')[0] for name, value in trainer.model.state_dict().items()
             if not torch.equal(value, before[name])}
    assert moved == {'vision_encoder', 'merger'}
    assert not any(name.startswith('language_model') for name, parameter in trainer.model.named_parameters()
                   if parameter in trainer.optimizer.state)
