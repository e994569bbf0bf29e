"""Direct preference optimization: make the better of two answers likelier, held to the model that the stage began with.

Source: Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.3 (pairs of pictures and text, or text alone, each seen
once, with the vision encoder frozen); arXiv 2305.18290. A pair is one row [prompt | chosen | rejected]: one pass of the
vision encoder serves policy, reference and both answers (data/preference.py).
Shapes: n pairs (a column for the chosen and one for the rejected answer), S targets, N patches, T tokens, E width.
"""
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvlkit.data.datasets.mixture import as_mixture
from qvlkit.data.preference import PreferenceProcessor, collate_pairs
from qvlkit.engine.adapters import adapters_disabled, has_adapters
from qvlkit.losses.log_probabilities import linear_log_probabilities
from qvlkit.planning.flops import PartFlops, reference_flops
from qvlkit.registry import LOSSES, TRAINERS, near_names
from qvlkit.structures import PreferenceBatch
from qvlkit.train.reference import (
    START_WEIGHTS,
    LiveReference,
    StoredReference,
    outputs_of,
    store_header,
    weights_hash,
)
from qvlkit.train.trainer import Trainer

logger = logging.getLogger('qvlkit')

REFERENCES = ['live', 'stored']


@TRAINERS.register_module()
class DPOTrainer(Trainer):
    """A loss of answers' log-probabilities under the model and under the reference.

    Args:
        loss: Config or object: one of losses/preference.py; default DPOLoss.
        reference: 'live' computes with a frozen copy of what trains; 'stored' computes every pair's log-probabilities
            before the first step, into a file, and then needs no copy.
        reference_path: That file; default: reference.safetensors in the stage's folder. One that is there is used, if
            it is of this model and processor.
        allow_repeats: Sources without `epochs` are read without end, and more than one epoch is taken.
        allow_video, max_answer_tokens: See `PreferenceProcessor`.
        chunk_rows: Targets whose logits are held at one time.
        arguments: As for `Trainer`.
    """
    collate = staticmethod(collate_pairs)

    def __init__(self, *, loss: dict | Callable | None = None, reference: str = 'live',
                 reference_path: str | None = None, allow_repeats: bool = False, allow_video: bool = False,
                 max_answer_tokens: int | None = None, chunk_rows: int = 1024, **arguments: Any):
        super().__init__(**arguments)
        loss = loss or dict(type='DPOLoss')
        self.loss = LOSSES.build(loss, config_key='trainer.loss') if isinstance(loss, dict) else loss
        if not hasattr(self.loss, 'rewards'):
            raise ValueError(f'trainer.loss.type: {type(self.loss).__name__} is no loss of preference pairs; expected '
                             'one of qvlkit/losses/preference.py, such as DPOLoss')
        if reference not in REFERENCES:
            raise ValueError(f'trainer.reference: expected one of {", ".join(REFERENCES)}, got {reference!r}'
                             f'{near_names(reference, REFERENCES)}')
        if isinstance(chunk_rows, bool) or not isinstance(chunk_rows, int) or chunk_rows < 1:
            raise ValueError(f'trainer.chunk_rows: expected a whole number of at least 1, got {chunk_rows!r}')
        self.chunk_rows = chunk_rows
        self.reference_path = Path(reference_path or self.work_dir / 'reference.safetensors')
        self.live = LiveReference(self.model) if reference == 'live' else None
        self.stored: StoredReference | None = None
        self.start_hash: str | None = None  # of the reference's weights, once training begins
        if self.live is not None and not self.live.shares_features:
            logger.info('%s: the vision encoder trains, so the reference keeps a copy of it and makes a vision pass of '
                        'its own', self.stage)

    @classmethod
    def encoder(cls, processor: Any, settings: dict) -> PreferenceProcessor:
        """Pairs, not conversations."""
        return PreferenceProcessor(processor, allow_video=settings.get('allow_video', False),
                                   max_answer_tokens=settings.get('max_answer_tokens'))

    @classmethod
    def prepare_dataset(cls, dataset: Any, stage: dict, *, config_key: str) -> Any:
        """Each pair once: sources that do not say how often they are read are read once."""
        if stage['trainer'].get('allow_repeats', False):
            return dataset
        mixture = as_mixture(dataset, 'shuffle' if stage['loader'].get('shuffle', True) else 'sequential')
        for source in mixture.sources:
            if source.epochs is not None and source.epochs > 1:
                place = source.name.replace('/', '.dataset.parts.')
                raise ValueError(f'{config_key}.data.parts.{place}.epochs: each pair is seen once, but this is '
                                 f'{source.epochs}; say {config_key}.trainer.allow_repeats=True if it is meant')
        return mixture.read_once()

    @classmethod
    def keeps_reference(cls, settings: dict) -> bool:
        """A live one."""
        return settings.get('reference', 'live') == 'live'

    def part_flops(self, batch: PreferenceBatch) -> list[PartFlops]:
        """Of the policy, forward and backward, and of a live reference, forward: the loss cannot be had without it. A
        stored one was computed before the first step."""
        parts = super().part_flops(batch)
        if parts and self.live is not None:
            parts.append(reference_flops(self.live.model, batch, shares_features=self.live.shares_features))
        return parts

    def loss_units(self, batch: PreferenceBatch) -> int:
        """Pairs."""
        return batch.num_pairs

    def compute_loss(self, batch: PreferenceBatch) -> torch.Tensor:
        """Summed loss of the batch's pairs."""
        with outputs_of(self.model.vision_encoder) as features:
            hidden = self.model(batch)
        log_probabilities, policy = self.answer_sums(self.model, batch, hidden)
        reference = self.reference_sums(batch, features[0].detach()).to(policy.dtype)
        self._note(batch, policy.detach(), reference)
        self.note_groups(batch, -log_probabilities.detach())
        return self.loss(policy, reference, batch.answer_lengths).sum()

    def answer_sums(self, model: nn.Module, batch: PreferenceBatch, hidden: torch.Tensor
                    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (T, E) of a batch -> log-probability of each target (S,), and of each whole answer (n, 2)."""
        each = linear_log_probabilities(hidden.index_select(0, batch.target_rows), model.language_model.head_weight,
                                        batch.target_ids, self.chunk_rows)
        sums = each.new_zeros(2 * batch.num_pairs).index_add(0, batch.answer_of_target, each)
        return each, sums.view(-1, 2)

    @torch.no_grad()
    def reference_sums(self, batch: PreferenceBatch, features: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of whole answers (n, 2) under the reference; `features` (N, D) are the policy's."""
        if self.live is not None:
            return self.answer_sums(self.live.model, batch, self.live(batch, features))[1]
        if self.loader is None:  # a rehearsal has no data, hence no store
            return torch.zeros_like(batch.answer_lengths, dtype=torch.float32)
        if self.stored is None:
            raise ValueError(f'{self.reference_path}: the reference is stored when training begins, by fit()')
        return self.stored.sums(batch).to(self.device, non_blocking=True)

    def _note(self, batch: PreferenceBatch, policy: torch.Tensor, reference: torch.Tensor) -> None:
        """Metrics of the step: means over pairs, and `kl` over the answers' tokens.

        kl is the mean of log pi - log pi_ref over tokens of both answers: the plain estimate of the divergence from the
        reference, on the data's answers and not on samples of the policy, so that it may be negative.
        """
        rewards = self.loss.rewards(policy, reference, batch.answer_lengths)
        margins = rewards[:, 0] - rewards[:, 1]
        self.note('reward_margin', margins)
        self.note('reward_accuracy', prefers(margins))
        self.note('logp_chosen', policy[:, 0])
        self.note('logp_rejected', policy[:, 1])
        of_token = ((policy - reference) / batch.answer_lengths).flatten()
        self.note('kl', of_token.index_select(0, batch.answer_of_target))

    def fit(self) -> None:
        """Train from the present step to the last; at the first, fix the reference before."""
        if self.step == 0:
            self.begin_reference()
        super().fit()

    def begin_reference(self) -> None:
        """Fix the reference: the model as it is now. Live: its weights are written down for a resume. Stored: every
        pair's log-probabilities are computed, unless they are there."""
        self.start_hash = weights_hash(self.model if self.live is None else self.live.model)
        if self.live is not None:
            if self.strategy.is_main:
                self.live.save(self.work_dir / START_WEIGHTS)
            self.strategy.barrier()
            return
        header = store_header(self.start_hash, self.processor)
        if StoredReference.exists(self.reference_path):
            logger.info('%s: reference log-probabilities from %s', self.stage, self.reference_path)
        else:
            self._compute_store(header)
        self.stored = StoredReference.load(self.reference_path, header)

    def _compute_store(self, header: dict) -> None:
        """Every pair once, through the loader's own path; each rank computes its rows, and the first joins them."""
        from rich.progress import MofNCompleteColumn, Progress, TextColumn
        own = self.reference_path.with_name(f'{self.reference_path.stem}.rank_{self.strategy.rank}.safetensors')
        keys, sums = [], []
        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TextColumn('pairs'),
                      disable=not self.strategy.is_main) as progress:
            task = progress.add_task('reference log-probabilities', total=len(self.loader.dataset))
            for rows in self.loader.once():
                for row in rows:
                    keys += row.content_keys
                    sums.append(self.start_sums(row.to(self.device, non_blocking=True))[0])
                    progress.advance(task, row.num_pairs * self.strategy.world_size)
        StoredReference.save(own, header, keys, torch.cat(sums or [torch.zeros(0, 2)]).cpu())
        self.strategy.barrier()
        if self.strategy.is_main:
            files = [own.with_name(f'{self.reference_path.stem}.rank_{rank}.safetensors')
                     for rank in range(self.strategy.world_size)]
            parts = [StoredReference.load(file, header) for file in files]
            StoredReference.save(self.reference_path, header, [key for part in parts for key in part.places],
                                 torch.cat([part.numbers for part in parts]))
            for file in files:
                file.unlink()
                file.with_suffix('.json').unlink()
        self.strategy.barrier()

    @torch.no_grad()
    def start_sums(self, batch: PreferenceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, 2) under the reference and under the policy, before the first step, when one model is both but for
        its adapters."""
        with adapters_disabled(self.model):
            reference = self.policy_sums(batch)
        return reference, self.policy_sums(batch) if has_adapters(self.model) else reference

    @torch.no_grad()
    def policy_sums(self, batch: PreferenceBatch) -> torch.Tensor:
        """(n, 2) under the model as it is, as for an answer: without dropout."""
        training = self.model.training
        self.model.eval()
        with self.strategy.autocast():
            sums = self.answer_sums(self.model, batch, self.model(batch))[1]
        self.model.train(training)
        return sums

    def state_dict(self) -> dict:
        """As every trainer's, and which reference it is."""
        return dict(**super().state_dict(), reference=self.start_hash)

    def load_state_dict(self, state: dict) -> None:
        """The reference is put back too: it is the model with which the stage began, not the one that is resumed."""
        super().load_state_dict(state)
        self.start_hash = state['reference']
        if self.live is not None:
            self.live.load(self.work_dir / START_WEIGHTS, self.start_hash)
        else:
            self.stored = StoredReference.load(self.reference_path, store_header(self.start_hash, self.processor))


def prefers(margins: torch.Tensor) -> torch.Tensor:
    """1 where the margin is for the chosen answer, 0 where it is against it, one half for a tie."""
    return (margins.sign() + 1) / 2
