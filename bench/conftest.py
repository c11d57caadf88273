"""Benchmarks import their helpers from this directory; torch gets the threads ntkfast has."""

import sys
from pathlib import Path

import torch

from ntkfast import ops

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(ops.num_threads())
