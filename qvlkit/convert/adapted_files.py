"""The weights of a checkpoint as plain weights, also where its stage had adapters, quantized layers or averages.

A checkpoint of a stage with adapters (engine/adapters.py) holds q_proj.base_layer.weight, q_proj.lora_A.default.weight
and q_proj.lora_B.default.weight, and where it was quantized q_proj.base_layer.absmax. Here it has q_proj.weight alone,
merged at the moment when it is read: whoever wants weights never sees the others.
"""
from dataclasses import dataclass
from pathlib import Path

import torch

from qvlkit.convert.weight_files import WeightFiles, read_json
from qvlkit.engine.adapters import ABSMAX, BASE, DEFAULTS, LORA_A, LORA_B, dequantize, is_adapter, merged_weight
from qvlkit.engine.checkpoint import EMA, STATE

CONFIG = 'config.json'
_WEIGHT = '.weight'


def open_weights(folder: str | Path, *, ema: bool = False) -> WeightFiles:
    """The plain weights of a folder of any kind.

    Args:
        ema: Of what trained, take the moving averages.

    Raises:
        FileNotFoundError, ValueError: As `WeightFiles`; also if there are no averages, or the checkpoint does not say
            how its adapters are scaled.
    """
    files = AdaptedFiles(folder, averages=ema) if ema else WeightFiles(folder)
    if not ema and any(is_adapter(name) or name.endswith(ABSMAX) for name in files.names()):
        files = AdaptedFiles(folder)
    return files


@dataclass(frozen=True)
class _Layer:
    """Stored names of what makes up a layer's weight."""
    weight: str
    absmax: str | None
    factors: tuple[str, str] | None


class AdaptedFiles(WeightFiles):
    """WeightFiles of a checkpoint with adapters, with the interface of one without. Arguments: see `open_weights`."""

    def __init__(self, folder: str | Path, *, averages: bool = False):
        super().__init__(folder)
        if averages:
            self._take_averages()
        stored = super().names()
        self._layers: dict[str, _Layer] = {}
        self._plain: dict[str, str] = {}  # plain name -> stored name, of everything that is kept as it is
        for name in stored:
            if is_adapter(name) or name.endswith(ABSMAX):
                continue
            plain = name.replace(f'{BASE}.', '.')
            self._plain[plain] = name
            layer = name.removesuffix(_WEIGHT)
            absmax, outer = layer + ABSMAX, layer.removesuffix(BASE)
            factors = (outer + LORA_A, outer + LORA_B) if outer + LORA_A in self._home else None
            if name.endswith(_WEIGHT) and (factors or absmax in self._home):
                self._layers[plain] = _Layer(name, absmax if absmax in self._home else None, factors)
        self._scaling = self._read_scaling() if any(layer.factors for layer in self._layers.values()) else 0.0

    def names(self) -> list[str]:
        """Plain names of all tensors."""
        return list(self._plain)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a plain tensor, from the headers."""
        shape, layer = super().shape(self._plain[name]), self._layers.get(name)
        packed = layer is not None and layer.absmax and self._slice(layer.weight).get_dtype() == 'U8'
        return (shape[0], 2 * shape[1]) if packed else shape

    def dtype(self, name: str) -> torch.dtype:
        """Kind of a plain tensor: float32 where it was quantized."""
        layer = self._layers.get(name)
        return torch.float32 if layer is not None and layer.absmax else super().dtype(self._plain[name])

    def read(self, name: str) -> torch.Tensor:
        """One plain tensor, on the CPU."""
        layer, weight = self._layers.get(name), super().read(self._plain[name])
        if layer is None:
            return weight
        if layer.absmax:
            weight = dequantize(weight, super().read(layer.absmax))
        if layer.factors:
            lora_a, lora_b = map(super().read, layer.factors)
            weight = merged_weight(weight, lora_a, lora_b, self._scaling)
        return weight

    def _take_averages(self) -> None:
        if not (self.folder / EMA).is_file():
            raise ValueError(f'{self.folder}: holds no {EMA}; expected a checkpoint of a stage with the key ema')
        weights = self._home
        self._home = {}
        self._open(EMA)
        strange = sorted(self._home.keys() - weights.keys())
        if strange:
            raise ValueError(f'{self.folder / EMA}: averages of {strange[0]!r}, which the weights do not hold')
        self._home = weights | self._home

    def _read_scaling(self) -> float:
        """alpha / rank of the stage that wrote the checkpoint."""
        lora = stage_settings(self.folder)[1]['lora']
        return lora.get('alpha', DEFAULTS['alpha']) / lora.get('rank', DEFAULTS['rank'])


def stage_settings(folder: Path) -> tuple[str, dict]:
    """Name and config of the stage with adapters that wrote a checkpoint; ValueError if that is not said there."""
    stage = read_json(folder / STATE).get('stage') if (folder / STATE).is_file() else None
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    settings = (config.get('stages') or {}).get(stage) or {}
    if not isinstance(settings.get('lora'), dict):
        raise ValueError(f'{folder}: the weights hold adapters, but {CONFIG} has no stages.{stage}.lora that '
                         'says how they are scaled; expected a whole checkpoint of a stage')
    return stage, settings
