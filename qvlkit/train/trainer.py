"""The loop: the only one in qvlkit, with the only backward().

A trainer turns rows of packed samples into optimizer steps. What is trained for is `compute_loss`, which sft.py and its
siblings define; everything that only watches or saves is a hook (train/hooks/).
"""
import logging
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
from qvlkit.planning.flops import SampleCost
from qvlkit.structures import Measure, PackedBatch
from qvlkit.train.checkpointing import load_training_state, save_training_state
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

    What a trainer needs of its data it says in class attributes: `collate` joins encoded samples to a batch,
    `encoder` makes of the processor what measures and encodes its samples, `sample_cost` is what they cost, and
    `prepare_dataset` may say how often they are read.
    """
    collate: Callable[..., Any] = staticmethod(collate)

    def __init__(self, model: nn.Module, loader: Any, *, optimizer: torch.optim.Optimizer, schedule: Any, strategy: Any,
                 hooks: list[Hook], max_steps: int, max_grad_norm: float | None, work_dir: Path, stage: str,
                 config: dict, processor: Any, freezing: Freezing | None = None, ema: WeightAverage | None = None):
        self.model, self.loader, self.optimizer, self.schedule = model, loader, optimizer, schedule
        self.strategy, self.device = strategy, strategy.device
        self.hooks, self.max_steps, self.max_grad_norm = hooks, max_steps, max_grad_norm
        self.work_dir, self.stage, self.config, self.processor = Path(work_dir), stage, config, processor
        self.freezing, self.ema = freezing, ema
        self.step = 0
        self.saved_step: int | None = None  # of the newest checkpoint that this run wrote or read
        self.num_tokens, self.seconds = 0, 0.0  # of all steps so far
        self._recent: deque[torch.Tensor] = deque(maxlen=20)  # losses, on the device
        self.metrics: dict[str, Any] = {}
        self.results: dict[str, dict] = {}  # held-out numbers of the stage, noted by hooks: see recipe_report.py
        self._noted: dict[str, torch.Tensor] = {}  # name -> (2,): sum and count of this step, on the device
        self.group_sums: torch.Tensor | None = None  # (groups, 2): loss and targets of each group, in this step
        self.rows: list[PackedBatch] = []  # of this step, as the loader gave them

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

    @abstractmethod
    def compute_loss(self, batch: Any) -> torch.Tensor:
        """Sum of the losses of the batch: a scalar tensor."""

    def loss_units(self, batch: Any) -> int:
        """How many terms `compute_loss` sums: the step's loss is the sum over all rows and ranks, divided by them."""
        return batch.num_targets

    def prepare_step(self, rows: list) -> None:  # noqa: B027
        """Called with the rows of a step, on the device, before the first loss."""

    def fit(self) -> None:
        """Train from the present step to the last."""
        self.call_hooks('before_run')
        self.call_hooks('before_train')
        self.model.train()
        try:
            if self.step < self.max_steps:
                begun = time.perf_counter()
                for rows in self.loader:
                    self.call_hooks('before_train_iter')
                    self.metrics = self.train_step(rows)
                    self.step += 1
                    self.num_tokens += self.metrics['num_tokens']
                    self._recent.append(self.metrics['loss'])
                    self.seconds, begun = self.seconds + time.perf_counter() - begun, time.perf_counter()
                    self.call_hooks('after_train_iter')
                    if self.step >= self.max_steps:
                        break
                else:
                    logger.warning('%s: the data end after %d of %d steps', self.stage, self.step, self.max_steps)
            self.call_hooks('after_train')
        finally:
            self.call_hooks('after_run')

    def train_step(self, rows: list[PackedBatch]) -> dict[str, Any]:
        """One optimizer step over the rows; the numbers it returns may still be on the device."""
        if self.freezing is not None:
            self.freezing.apply(self.step)
        self.rows, rows = rows, [row.to(self.device, non_blocking=True) for row in rows]
        units = self.strategy.sum_over_ranks(
            torch.full((), sum(map(self.loss_units, rows)), device=self.device))
        loss, self.group_sums, self._noted = torch.zeros((), device=self.device), None, {}
        self.prepare_step(rows)
        for row in rows:
            with self.strategy.autocast():
                row_loss = self.compute_loss(row) / units
            row_loss.backward()
            loss = loss + row_loss.detach()  # in the loss's own precision
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group['params']]
        self.strategy.reduce_gradients(parameters)
        grad_norm = self.strategy.clip_gradients(parameters, self.max_grad_norm)
        learning_rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update()
        return dict(loss=self.strategy.sum_over_ranks(loss), grad_norm=grad_norm, lr=learning_rate,
                    num_tokens=sum(row.num_tokens for row in rows), num_targets=units, **self._noted_means())

    def recent_loss(self) -> float | None:
        """Mean loss of the last steps, at most 20; waits for the device."""
        return torch.stack(list(self._recent)).mean().item() if self._recent else None

    def note(self, name: str, values: torch.Tensor) -> None:
        """Add the values (n,) to the mean that the step's metrics give under `name`; stays on the device.

        Every rank notes the same names, though perhaps with no value.
        """
        sums = torch.stack([values.detach().double().sum(), values.new_tensor(values.numel(), dtype=torch.float64)])
        self._noted[name] = self._noted[name] + sums if name in self._noted else sums

    def _noted_means(self) -> dict[str, torch.Tensor]:
        if not self._noted:
            return {}
        sums = self.strategy.sum_over_ranks(torch.stack(list(self._noted.values())))
        return dict(zip(self._noted, sums[:, 0] / sums[:, 1]))

    def note_groups(self, batch: PackedBatch, losses: torch.Tensor) -> None:
        """Add the losses of the batch's targets (S,) to the sums of their groups; stays on the device."""
        if batch.target_groups is not None:
            sums = torch.stack([losses.double(), torch.ones_like(losses, dtype=torch.float64)], dim=1)
            total = sums.new_zeros(batch.num_groups, 2).index_add_(0, batch.target_groups, sums)
            self.group_sums = total if self.group_sums is None else self.group_sums + total

    def call_hooks(self, point: str) -> None:
        """Call `point` of every hook."""
        for hook in self.hooks:
            getattr(hook, point)(self)

    def save(self, keep: int | None = None) -> Path:
        """Write a checkpoint of the present step; the newest `keep` stay."""
        self.saved_step = self.step
        return save_training_state(self, keep=keep)

    def resume(self) -> None:
        """Go on from the newest intact checkpoint of the stage; an error where there is none."""
        load_training_state(self, self.work_dir)
        self.saved_step = self.step

    def state_dict(self) -> dict:
        """What a resume needs beside model, optimizer and schedule."""
        return dict(step=self.step, num_tokens=self.num_tokens, seconds=self.seconds, results=self.results,
                    loader=self.loader.state_dict(), rng=rng_state())

    def load_state_dict(self, state: dict) -> None:
        """The reverse of `state_dict`."""
        self.step, self.num_tokens, self.seconds = state['step'], state['num_tokens'], state['seconds']
        self.results = state['results']
        self.loader.load_state_dict(state['loader'])
        set_rng_state(state['rng'])
