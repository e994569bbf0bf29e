"""The loop: the only one in qvlkit, with the only backward().

A trainer turns rows of packed samples into optimizer steps. What is trained for is `compute_loss`, which sft.py and its
siblings define; everything that only watches or saves is a hook (train/hooks/).
"""
import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvlkit.data.collate import collate
from qvlkit.engine.ema import WeightAverage
from qvlkit.engine.freezing import Freezing
from qvlkit.engine.seed import rng_state, set_rng_state
from qvlkit.planning.flops import PartFlops, SampleCost, batch_flops
from qvlkit.structures import Measure, PackedBatch
from qvlkit.train.checkpointing import load_training_state, save_training_state
from qvlkit.train.guard import Guard
from qvlkit.train.hooks.base import Hook

logger = logging.getLogger('qvlkit')


class Trainer(ABC):
    """Trains one stage.

    Args:
        model: A VLM, placed by the strategy.
        loader: Iterating gives the rows of one step after another, until the data end; has state_dict and
            load_state_dict.
        optimizer, schedule: From engine/optimizer.py and engine/schedules.py.
        strategy: Where and how: engine/strategies/.
        hooks: Called at the points named in hooks/base.py, in order.
        max_steps: Steps of the stage.
        max_grad_norm: Gradients are scaled down to this norm; None leaves them.
        work_dir: Folder of the stage.
        stage: Its name.
        config: The resolved config, saved with each checkpoint.
        processor: Saved with each checkpoint, so that a checkpoint answers questions by itself.
        freezing: Says at each step which parts train; None leaves everything as it is.
        ema: Moving average of the weights, kept up and saved beside them.
        guard: What to do about steps that would harm the weights; default: train/guard.py's.

    What a trainer needs of its data it says in class attributes: `collate` joins encoded samples to a batch,
    `encoder` makes of the processor what measures and encodes its samples, `sample_cost` is what they cost, and
    `prepare_dataset` may say how often they are read. `two_towers`: its model is a TwoTowers, not a VLM.
    """
    collate: Callable[..., Any] = staticmethod(collate)
    two_towers = False

    def __init__(self, model: nn.Module, loader: Any, *, optimizer: torch.optim.Optimizer, schedule: Any, strategy: Any,
                 hooks: list[Hook], max_steps: int, max_grad_norm: float | None, work_dir: Path, stage: str,
                 config: dict, processor: Any, freezing: Freezing | None = None, ema: WeightAverage | None = None,
                 guard: Guard | None = None):
        self.model, self.loader, self.optimizer, self.schedule = model, loader, optimizer, schedule
        self.strategy, self.device = strategy, strategy.device
        self.hooks, self.max_steps, self.max_grad_norm = hooks, max_steps, max_grad_norm
        self.work_dir, self.stage, self.config, self.processor = Path(work_dir), stage, config, processor
        self.freezing, self.ema = freezing, ema
        self.guard = guard or Guard()
        self.step = 0
        self.saved_step: int | None = None  # of the newest checkpoint that this run wrote or read
        self.num_tokens, self.seconds = 0, 0.0  # of all steps so far
        self._recent: deque[torch.Tensor] = deque(maxlen=20)  # losses, on the device
        self.metrics: dict[str, Any] = {}
        self.results: dict[str, dict] = {}  # held-out numbers of the stage, noted by hooks: see recipe_report.py
        self._noted: dict[str, torch.Tensor] = {}  # name -> (2,): sum and count of this step, on the device
        self._names: list[str] | None = None  # what the steps before noted, on any rank
        self.group_sums: torch.Tensor | None = None  # (groups, 2): loss and targets of each group, in this step
        self.rows: list[PackedBatch] = []  # of this step, as the loader gave them
        self.row_losses: list[torch.Tensor] = []  # what each adds to the step's loss, on the device

    @classmethod
    def encoder(cls, processor: Any, settings: dict) -> Any:
        """What measures and encodes this trainer's samples: has `measure`, `measure_sizes`, `shrunk_limits`, `encode`.

        Args:
            processor: The run's Processor.
            settings: The trainer's config.
        """
        return processor

    @classmethod
    def prepare_dataset(cls, dataset: Any, stage: dict, *, config_key: str) -> Any:
        """The stage's dataset as this trainer reads it.

        Args:
            dataset: As the config's `data` builds it.
            stage: The stage's config.
            config_key: Its path in the whole config, for messages.
        """
        return dataset

    @classmethod
    def sample_cost(cls, model: nn.Module, trainable: Mapping[str, bool]) -> Callable[[Measure], float]:
        """Measure -> operations of a sample in a step, by which rows are evened out."""
        return SampleCost(model, trainable)

    @classmethod
    def keeps_reference(cls, settings: dict) -> bool:
        """Whether a frozen copy of what trains stands beside the model (`settings`: the trainer's config)."""
        return False

    @abstractmethod
    def compute_loss(self, batch: Any) -> torch.Tensor:
        """Sum of the losses of the batch: a scalar tensor."""

    def loss_units(self, batch: Any) -> int:
        """How many terms `compute_loss` sums: the step's loss is the sum over all rows and ranks, divided by them."""
        return batch.num_targets

    def flops(self, batch: Any) -> int:
        """Operations of a step over the batch, nothing counted twice; 0 where nobody knows."""
        return sum(part.total for part in self.part_flops(batch))

    def part_flops(self, batch: Any) -> list[PartFlops]:
        """The same by part; none where nobody knows."""
        if not isinstance(batch, PackedBatch) or not hasattr(self.model, 'parts'):
            return []
        return batch_flops(self.model, batch, self.trains())

    def trains(self) -> dict[str, bool]:
        """Part -> whether something of it trains now."""
        return {name: any(p.requires_grad for p in part.parameters()) for name, part in self.model.parts().items()}

    def prepare_step(self, rows: list) -> None:  # noqa: B027
        """Called with the rows of a step, on the device, before the first loss."""

    def fit(self) -> None:
        """Train from the present step to the last."""
        self.call_hooks('before_run')
        self.call_hooks('before_train')
        self.model.train()
        try:
            while self.step < self.max_steps and self._make_steps():
                pass
            self.call_hooks('after_train')
        finally:
            self.call_hooks('after_run')

    def _make_steps(self) -> bool:
        """Steps up to the last one, or to where the guard takes some back; False where the data end."""
        begun = time.perf_counter()
        for rows in self.loader:
            if not self.guard.draws():
                continue
            self.call_hooks('before_train_iter')
            self.metrics = self.train_step(rows)
            self.step += 1
            self.num_tokens += self.metrics['num_tokens']
            self._recent.append(self.metrics['loss'])
            self.guard.watch(self)
            self.seconds, begun = self.seconds + time.perf_counter() - begun, time.perf_counter()
            self.call_hooks('after_train_iter')
            if self.step >= self.max_steps:
                self.guard.settle(self)
            if self.guard.must_roll_back:
                self.guard.roll_back(self, load_training_state)
                self.save()  # so that a resume, too, leaves the data out
                return True
            if self.step >= self.max_steps:
                return True
        logger.warning('%s: the data end after %d of %d steps', self.stage, self.step, self.max_steps)
        return False

    def train_step(self, rows: list[PackedBatch]) -> dict[str, Any]:
        """One optimizer step over the rows; the numbers it returns may still be on the device."""
        if self.freezing is not None:
            self.freezing.apply(self.step)
        self.rows, rows = rows, [row.to(self.device, non_blocking=True) for row in rows]
        units, num_tokens, flops = self._count(rows)
        loss, self.row_losses, self.group_sums, self._noted = torch.zeros((), device=self.device), [], None, {}
        self.prepare_step(rows)
        for row in rows:
            with self.strategy.autocast():
                row_loss = self.compute_loss(row) / units
            row_loss.backward()
            self.row_losses.append(row_loss.detach())
            loss = loss + row_loss.detach()  # in the loss's own precision
        loss = self.strategy.sum_over_ranks(loss.double())
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group['params']]
        self.strategy.reduce_gradients(parameters)
        self.call_hooks('before_optimizer_step')
        grad_norm = self.strategy.clip_gradients(parameters, self.max_grad_norm)
        learning_rate = self.schedule.get_last_lr()[0]
        skipped = self.guard.judge(loss, grad_norm)
        self.guard.step(self.optimizer, skipped)
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(skipped)
        return dict(loss=loss, grad_norm=grad_norm, lr=learning_rate, num_tokens=num_tokens, num_targets=units,
                    flops=flops, skipped=skipped, **self._noted_means())

    def _count(self, rows: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss units, tokens and operations of the step on all ranks, on the device: one sum over ranks."""
        own = (sum(map(self.loss_units, rows)), sum(row.num_tokens for row in rows), sum(map(self.flops, rows)))
        counts = self.strategy.sum_over_ranks(
            torch.stack([torch.full((), count, dtype=torch.float64, device=self.device) for count in own]))
        return counts[0].to(torch.int64), counts[1].to(torch.int64), counts[2]

    def recent_loss(self) -> float | None:
        """Mean loss of the last steps, at most 20, without those that are not finite; waits for the device."""
        losses = [loss for loss in torch.stack(list(self._recent)).tolist() if math.isfinite(loss)] if (
            self._recent) else []
        return sum(losses) / len(losses) if losses else None

    def note(self, name: str, values: torch.Tensor) -> None:
        """Add the values (n,) to the mean that the step's metrics give under `name`; stays on the device.

        Every rank notes the same names, though perhaps with no value.
        """
        sums = torch.stack([values.detach().double().sum(), values.new_tensor(values.numel(), dtype=torch.float64)])
        self._noted[name] = self._noted[name] + sums if name in self._noted else sums

    def _noted_means(self) -> dict[str, torch.Tensor]:
        if self._names is None:
            self._names = self._names_of_all_ranks()
        nothing = torch.zeros(2, dtype=torch.float64, device=self.device)  # of a rank without a row
        names = dict.fromkeys([*(self._names or ()), *self._noted])
        noted = {name: self._noted.get(name, nothing) for name in names}
        if not noted:
            return {}
        sums = self.strategy.sum_over_ranks(torch.stack(list(noted.values())))
        return dict(zip(noted, sums[:, 0] / sums[:, 1]))

    def _names_of_all_ranks(self) -> list[str] | None:
        """What ranks with rows noted in the first step, for those that had none; None where no rank had a row."""
        if self.strategy.world_size == 1:
            return []
        own = json.dumps(list(self._noted)) + '\n' if self.row_losses else ''
        text, _ = self.strategy.gather_rows(torch.tensor(list(own.encode()), dtype=torch.uint8))
        lists = [json.loads(line) for line in bytes(text.tolist()).decode().splitlines()]
        return list(dict.fromkeys(name for names in lists for name in names)) if lists else None

    def note_groups(self, batch: PackedBatch, losses: torch.Tensor) -> None:
        """Add the losses of the batch's targets (S,) to the sums of their groups; stays on the device."""
        if batch.target_groups is not None:
            sums = torch.stack([losses.double(), torch.ones_like(losses, dtype=torch.float64)], dim=1)
            total = sums.new_zeros(batch.num_groups, 2).index_add_(0, batch.target_groups, sums)
            self.group_sums = total if self.group_sums is None else self.group_sums + total

    def call_hooks(self, point: str) -> None:
        """Call `point` of every hook."""
        for hook in self.hooks:
            if self.strategy.is_main or not hook.main_only:
                getattr(hook, point)(self)

    def save(self, keep: int | None = None) -> Path:
        """Write a checkpoint of the present step; the newest `keep` stay. Every rank calls it, the main one writes.

        Amid bad steps none is removed: the run may have to go back to one from before them.
        """
        self.saved_step = self.step
        self.guard.settle(self)
        if self.strategy.is_main:
            save_training_state(self, keep=None if self.guard.streak else keep)
        else:
            self.call_hooks('before_save_checkpoint')  # as the main rank does before it writes
        self.strategy.barrier()
        return self.work_dir / f'step_{self.step}'

    def resume(self) -> None:
        """Go on from the newest intact checkpoint of the stage; an error where there is none.

        Raises:
            ValueError: Ranks have found different checkpoints: they do not see the same folder.
        """
        load_training_state(self, self.work_dir)
        steps, _ = self.strategy.gather_rows(torch.tensor([self.step]))
        if len(set(steps.tolist())) > 1:
            raise ValueError(f'{self.work_dir}: the ranks find checkpoints of different steps: {steps.tolist()}; they '
                             'must all see the same folder')
        self.saved_step = self.step

    def state_dict(self) -> dict:
        """What a resume needs beside model, optimizer and schedule."""
        return dict(step=self.step, num_tokens=int(self.num_tokens), seconds=self.seconds, results=self.results,
                    loader=self.loader.state_dict(), guard=self.guard.state_dict(), rng=rng_state())

    def load_state_dict(self, state: dict) -> None:
        """The reverse of `state_dict`."""
        self.step, self.num_tokens, self.seconds = state['step'], state['num_tokens'], state['seconds']
        self.results = state['results']
        self.loader.load_state_dict(state['loader'])
        self.guard.load_state_dict(state['guard'])
        set_rng_state(state['rng'])
