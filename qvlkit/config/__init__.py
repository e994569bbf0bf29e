"""Configs: files to read, overrides to apply, keys to check. Start at load.py.

A config file is Python (code, like any script), YAML or JSON (data, never code). Files inherit by `_base_`.
"""
from qvlkit.config.load import load_config, save_config
from qvlkit.config.parts import check_complete, validate
from qvlkit.config.plugins import load_plugins

__all__ = ['check_complete', 'load_config', 'load_plugins', 'save_config', 'validate']
