"""Python imports this from the folder on PYTHONPATH, into which stage_package.sh copies it.

The finder of an editable installation would otherwise be asked before PYTHONPATH.
"""

import sys

sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("_editable_")]
