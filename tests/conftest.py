import os
import signal

# A shell starts its background jobs with Ctrl-C ignored, and their children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before numpy and torch start their pools: the tests' matrices are small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hypothesis import settings

# No deadlines: the first example pays for imports, and CI machines stutter. Fixed examples: a
# failure in CI is a failure at home.
settings.register_profile("ntkfast", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("ntkfast")
