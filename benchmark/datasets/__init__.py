"""Datasets for offline learning, in the layout of the DQN replay dataset: see `python -m benchmark.datasets --help`.

`layout` writes and reads the files, `export` takes a run's replay to them, `minari_format` another library's datasets.
Reading needs NumPy alone.
"""

from benchmark.datasets.layout import read, read_info, transitions

__all__ = ["read", "read_info", "transitions"]
