"""Build step beside pyproject.toml: configs/ is shipped inside the package, as qvlkit/_configs."""
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies configs/ into the built package. An editable install reads them where they stand."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / 'qvlkit' / '_configs'
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(Path(__file__).parent / 'configs', target, ignore=shutil.ignore_patterns('__pycache__'))


setup(cmdclass={'build_py': BuildWithConfigs})
