"""Several datasets as one, each with its share of the samples."""
import dataclasses

import numpy as np

from qvlkit.registry import DATASETS
from qvlkit.structures import Sample
from qvlkit.utils.seeded import seeded


@DATASETS.register_module()
class MixedDataset:
    """A fixed shuffle of datasets, drawn by weight.

    Args:
        parts: Name of each part -> dict(dataset=its config or a built dataset, weight=its share, 1.0 if absent).
        size: Number of samples.
        seed: Changes which part gives which sample.
        name: Name of the mixture.

    A part gives its samples in order and starts again at its end. `source` of a sample is its part's name.

    Raises:
        ValueError: a part is empty or ill-formed, or its weight is not above 0.
    """

    def __init__(self, parts: dict[str, dict], size: int, seed: int = 0, *, name: str = 'mixed'):
        if not parts:
            raise ValueError('MixedDataset.parts: expected at least one dataset, got none')
        self.datasets, weights = {}, []
        for key, part in parts.items():
            where = f'MixedDataset.parts.{key}'
            if not isinstance(part, dict) or 'dataset' not in part or set(part) - {'dataset', 'weight'}:
                raise ValueError(f"{where}: expected a dict with 'dataset' and perhaps 'weight', got {part!r}")
            dataset, weight = part['dataset'], part.get('weight', 1.0)
            if isinstance(dataset, dict):
                dataset = DATASETS.build(dataset, config_key=f'{where}.dataset')
            if len(dataset) == 0:
                raise ValueError(f'{where}.dataset: expected samples, but it has none')
            if not weight > 0:
                raise ValueError(f'{where}.weight: expected a number above 0, got {weight!r}')
            self.datasets[key] = dataset
            weights.append(float(weight))
        self.name, self._keys = name, list(parts)
        self._part = seeded(seed, 'mixed', *parts).choice(len(weights), size=size, p=np.divide(weights, sum(weights)))
        self._inner = np.empty(size, dtype=np.int64)  # how many samples of the same part came before
        for i in range(len(weights)):
            rows = self._part == i
            self._inner[rows] = np.arange(rows.sum()) % len(self.datasets[self._keys[i]])

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f'{self.name}: index {index} of {len(self)}')
        key = self._keys[self._part[index]]
        return dataclasses.replace(self.datasets[key][int(self._inner[index])], source=key)
