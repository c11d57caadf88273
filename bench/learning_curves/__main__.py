import os

# Before numpy and torch start their pools: parallel processes, one thread each.
for _library in ("OMP", "OPENBLAS", "MKL", "NTKFAST"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

from .cli import main  # noqa: E402

main()
