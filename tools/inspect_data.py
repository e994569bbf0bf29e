"""The same as `qvlkit inspect_data`; works from a checkout that is not installed."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from qvlkit.cli.inspect_data import main

raise SystemExit(main())
