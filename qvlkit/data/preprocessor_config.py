"""The preprocessor files of a Hugging Face folder: pixel limits and geometry, written and read."""
import json
from pathlib import Path

from qvlkit.structures import VisionGeometry

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the released model, for pixels in [0, 1]
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def preprocessor_configs(geometry: VisionGeometry, limits: dict[str, int]) -> tuple[dict, dict]:
    """Hugging Face's preprocessor_config.json and video_preprocessor_config.json."""
    common = {'do_resize': True, 'resample': 3, 'do_rescale': True, 'rescale_factor': 1 / 255, 'do_normalize': True,
              'do_convert_rgb': True, 'image_mean': list(IMAGE_MEAN), 'image_std': list(IMAGE_STD),
              'patch_size': geometry.patch_size, 'temporal_patch_size': geometry.temporal_patch_size,
              'merge_size': geometry.merge_size, 'processor_class': 'Qwen2_5_VLProcessor'}
    image = {**common, 'image_processor_type': 'Qwen2VLImageProcessor', 'min_pixels': limits['min_pixels'],
             'max_pixels': limits['max_pixels'],
             'size': {'shortest_edge': limits['min_pixels'], 'longest_edge': limits['max_pixels']}}
    video = {**common, 'video_processor_type': 'Qwen2VLVideoProcessor', 'min_pixels': limits['video_min_pixels'],
             'max_pixels': limits['video_max_pixels'], 'total_pixels': limits['video_total_pixels'],
             'size': {'shortest_edge': limits['video_min_pixels'], 'longest_edge': limits['video_max_pixels']}}
    return image, video


def read_limits(folder: str | Path) -> dict[str, int]:
    """The pixel limits in a folder's preprocessor configs, as arguments of `Processor`; absent ones are left out."""
    limits: dict[str, int] = {}
    for prefix, name in (('', 'preprocessor_config.json'), ('video_', 'video_preprocessor_config.json')):
        path = Path(folder) / name
        if not path.is_file():
            continue
        config = json.loads(path.read_text(encoding='utf-8'))
        size = config.get('size') or {}
        for key, edge in (('min_pixels', 'shortest_edge'), ('max_pixels', 'longest_edge')):
            value = config.get(key) or size.get(edge)
            if value:
                limits[prefix + key] = int(value)
        if prefix and config.get('total_pixels'):
            limits['video_total_pixels'] = int(config['total_pixels'])
    return limits


def write_json(path: Path, value: dict) -> None:
    """One JSON file, for people too."""
    path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
