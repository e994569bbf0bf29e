"""Asks which answer of held-out pairs the model prefers, before and after training."""
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from qvlkit.registry import DATASETS, HOOKS
from qvlkit.structures import PreferenceBatch
from qvlkit.train.dpo import prefers
from qvlkit.train.hooks.base import Hook, check_interval
from qvlkit.train.reference import StoredReference, store_header

HELD_OUT = 'held_out_reference.safetensors'  # what the stage began with, for a resume


@HOOKS.register_module()
class PreferenceHook(Hook):
    """Held-out accuracy of a DPO stage; goes into `evaluation.json`, under 'preference', and into `trainer.results`.

    Preference accuracy is the share of pairs whose implicit reward margin, against the model with which the stage
    began, is for the chosen answer; a tie counts one half, so it is one half before training. Beside it stands the
    share of pairs whose chosen answer the model itself finds likelier, as a whole and by the mean of its tokens.

    Args:
        dataset: Config of held-out pairs, or a built dataset.
        rows: Pairs that are computed at once.
    """
    main_only = True

    def __init__(self, dataset: Any, rows: int = 8):
        self.dataset = DATASETS.build(dataset, config_key='hooks.preference.dataset') if isinstance(
            dataset, dict) else dataset
        self.rows = check_interval(rows, 'PreferenceHook')
        self.before: dict | None = None
        self.reference: StoredReference | None = None

    @classmethod
    def misfit(cls, trainer: type) -> str | None:
        return None if hasattr(trainer, 'start_sums') else 'needs a DPOTrainer'

    def before_train(self, trainer) -> None:
        if not hasattr(trainer, 'start_sums'):
            raise ValueError(f'hooks: PreferenceHook needs a DPOTrainer, but stages.{trainer.stage}.trainer.type is '
                             f'{type(trainer).__name__}')
        path = Path(trainer.work_dir) / HELD_OUT
        header = store_header(trainer.start_hash, trainer.processor)
        if trainer.step == 0:
            batches = list(self._batches(trainer))
            both = [[sums.cpu() for sums in trainer.start_sums(batch)] for batch in batches]
            StoredReference.save(path, header, [key for batch in batches for key in batch.content_keys],
                                 torch.cat([reference for reference, _ in both]))
            self.reference = StoredReference.load(path, header)
            self.before = self._measure(trainer, batches, [policy for _, policy in both])
            self._write(trainer, dict(before=self.before, after=None))
        else:
            self.reference = StoredReference.load(path, header)
            self.before = self._read(trainer).get('preference', {}).get('before')

    def after_train(self, trainer) -> None:
        batches = list(self._batches(trainer))
        after = self._measure(trainer, batches, [trainer.policy_sums(batch).cpu() for batch in batches])
        self._write(trainer, dict(before=self.before, after=after))
        for name, key in (('preference accuracy', 'accuracy'), ('own log-probability prefers chosen', 'own'),
                          ('own log-probability of a token prefers chosen', 'own_per_token')):
            trainer.results[name] = dict(before=self.before[key] if self.before else None, after=after[key],
                                         chance=0.5, unit='%', count=after['pairs'])

    def _batches(self, trainer) -> Iterator[PreferenceBatch]:
        encode, (plan, geometry) = trainer.loader.processor.encode, (trainer.processor.plan, trainer.model.geometry)
        for start in range(0, len(self.dataset), self.rows):
            samples = [encode(self.dataset[index])
                       for index in range(start, min(start + self.rows, len(self.dataset)))]
            yield trainer.collate(samples, plan=plan, geometry=geometry).to(trainer.device, non_blocking=True)

    def _measure(self, trainer, batches: list[PreferenceBatch], policy: list[torch.Tensor]) -> dict:
        """Shares of pairs, and the mean margin."""
        policy = torch.cat(policy)
        reference = torch.cat([self.reference.sums(batch) for batch in batches])
        lengths = torch.cat([batch.answer_lengths for batch in batches]).cpu()
        rewards = trainer.loss.rewards(policy, reference, lengths)
        margins = rewards[:, 0] - rewards[:, 1]
        of_token = policy / lengths
        shares = dict(accuracy=margins, own=policy[:, 0] - policy[:, 1], own_per_token=of_token[:, 0] - of_token[:, 1])
        return dict(pairs=len(policy), margin=margins.mean().item(),
                    **{name: prefers(values).mean().item() for name, values in shares.items()})

    def _read(self, trainer) -> dict:
        path = Path(trainer.work_dir) / 'evaluation.json'
        return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}

    def _write(self, trainer, found: dict) -> None:
        results = {**self._read(trainer), 'preference': found}
        Path(trainer.work_dir).mkdir(parents=True, exist_ok=True)
        (Path(trainer.work_dir) / 'evaluation.json').write_text(json.dumps(results, indent=1), encoding='utf-8')
