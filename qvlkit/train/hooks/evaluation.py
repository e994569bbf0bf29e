"""Asks held-out questions before and after training, and writes the report page."""
import json
from pathlib import Path
from typing import Any

from qvlkit.evaluation.evaluator import Evaluation, Evaluator
from qvlkit.evaluation.training_report import HEADER, comparison_rows, write_training_report
from qvlkit.generation.decoding import generate_tokens
from qvlkit.registry import DATASETS, HOOKS
from qvlkit.structures import EncodedSample
from qvlkit.train.hooks.base import Hook
from qvlkit.train.hooks.jsonl import read_log


@HOOKS.register_module()
class EvaluationHook(Hook):
    """Held-out accuracy of each task beside chance and the untrained model; `report.html` and `evaluation.json`.

    Args:
        dataset: Config of the held-out questions, or a built dataset.
        metrics: Task -> config of its metric; see `Evaluator`.
        max_new_tokens: Longest answer.
        batch_size: Questions answered at once.
        title: Of the report page.
        log: The JSONL log from which the loss curve is drawn, if it exists.
    """
    main_only = True

    def __init__(self, dataset: Any, *, metrics: dict | None = None, max_new_tokens: int = 32, batch_size: int = 64,
                 title: str = 'What the model has learned', log: str = 'log.jsonl'):
        self.dataset = DATASETS.build(dataset, config_key='hooks.evaluation.dataset') if isinstance(
            dataset, dict) else dataset
        self.metrics, self.max_new_tokens, self.batch_size = metrics, max_new_tokens, batch_size
        self.title, self.log = title, log
        self.untrained: Evaluation | None = None

    @classmethod
    def misfit(cls, trainer: type) -> str | None:
        return 'asks a whole model, and two towers do not answer' if trainer.two_towers else None

    def before_train(self, trainer) -> None:
        self.evaluator = Evaluator(self.dataset, trainer.processor, metrics=self.metrics,
                                   reference=trainer.loader.dataset, batch_size=self.batch_size)
        if trainer.step == 0:
            self.untrained = self.evaluate(trainer)
            self._note(trainer, 'before', self.untrained)

    def after_train(self, trainer) -> None:
        result = self.evaluate(trainer)
        self._note(trainer, 'after', result)
        Path(trainer.work_dir).mkdir(parents=True, exist_ok=True)
        results = dict(trained=result.to_dict(), untrained=self.untrained.to_dict() if self.untrained else None)
        (trainer.work_dir / 'evaluation.json').write_text(json.dumps(results, indent=1), encoding='utf-8')
        log = trainer.work_dir / self.log
        history = read_log(log) if log.is_file() else []
        page = write_training_report(trainer.work_dir / 'report.html', title=self.title, history=history,
                                     before=self.untrained, after=result, summary=self._summary(trainer, history))
        self._print(result, page)

    def evaluate(self, trainer) -> Evaluation:
        """Ask every question of the model as it stands."""
        model, tokenizer = trainer.model, trainer.processor.tokenizer

        def answer(prompts: list[EncodedSample]) -> list[str]:
            tokens = generate_tokens(model, prompts, plan=trainer.processor.plan, max_new_tokens=self.max_new_tokens,
                                     stop_ids=trainer.processor.stop_ids())
            return [tokenizer.decode(ids) for ids in tokens]

        model.eval()
        result = self.evaluator(answer)
        model.train()
        return result

    @staticmethod
    def _note(trainer, when: str, result: Evaluation) -> None:
        for task, numbers in result.tasks.items():
            trainer.results.setdefault(task, dict(unit='%', chance=numbers.chance, count=numbers.count))
            trainer.results[task][when] = numbers.accuracy

    def _summary(self, trainer, history: list[dict]) -> dict:
        summary = {'stage': trainer.stage, 'steps': trainer.step, 'device': str(trainer.device),
                   'parameters': f'{sum(p.numel() for p in trainer.model.parameters()):,}',
                   'parts': ' → '.join(type(part).__name__ for part in trainer.model.children())}
        if history:
            summary |= {'training seconds': round(history[-1]['seconds']),
                        'tokens': f'{sum(row["num_tokens"] for row in history):,}'}
        return summary

    def _print(self, result: Evaluation, page: Path) -> None:
        from rich.console import Console
        from rich.table import Table
        table = Table(*HEADER)
        for row in comparison_rows(self.untrained, result):
            table.add_row(*row)
        console = Console()
        console.print(table)
        console.print(f'report: {page}', soft_wrap=True)
