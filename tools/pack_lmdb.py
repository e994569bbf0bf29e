"""The same as `qvlkit pack_lmdb`; works from a checkout that is not installed."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from qvlkit.cli.pack_lmdb import main

raise SystemExit(main())
