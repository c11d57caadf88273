"""Beside the package of the emulated build: the finder of an editable installation goes first."""

import sys

sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("_editable_")]
