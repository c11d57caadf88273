"""Proves an installed ntkfast with nothing but numpy: values, instruction sets, what is missing.

Run it from another folder than that of the sources, which would come first.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

import ntkfast as nf
from ntkfast import _core, ops

N, D, K, LABELED = 40, 60, 3, np.array([3, 11, 25, 30])


def posterior(labeled: np.ndarray, targets: np.ndarray, dtype: type = np.float64) -> nf.Posterior:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((N, D)).astype(dtype)
    outputs = rng.standard_normal((N, K)).astype(dtype)
    return nf.Posterior.from_features(
        features,
        outputs,
        features[labeled],
        outputs[labeled],
        targets,
        ridge=0.5,
        labeled_indices=labeled,
    )


def check_values(dtype: type, rtol: float) -> None:
    """Compare one criterion with its definition: refit under every label, entropy everywhere."""
    targets = np.array([0, 2, 1, 0])
    post = posterior(LABELED, targets, dtype)
    candidates = np.array([0, 7, 39])
    probabilities = np.array([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0], [0.1, 0.1, 0.8]])
    expected = np.zeros(len(candidates))
    for i, c in enumerate(candidates):
        for y in range(K):
            after = posterior(np.append(LABELED, c), np.append(targets, y)).mean
            p = softmax(np.asarray(after) / 0.1)
            entropy = -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=1)
            expected[i] -= probabilities[i, y] * entropy.sum()
    utilities = nf.utilities(
        post, "expected_entropy", candidates=candidates, label_probs=probabilities
    )
    np.testing.assert_allclose(utilities, expected, rtol=rtol)

    picked = nf.select(post, "variance_reduction", 3, mode="sequential")
    assert len(set(picked.indices)) == 3 and not set(picked.indices) & set(LABELED)
    with tempfile.TemporaryDirectory() as folder:
        post.save(Path(folder, "posterior ü.npz"))
        again = nf.Posterior.load(Path(folder, "posterior ü.npz"))
    np.testing.assert_array_equal(again.mean, post.mean)


def softmax(z: np.ndarray) -> np.ndarray:
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def check_threads() -> None:
    """Threads that score at once, without a GIL too, get what one gets."""
    expected = nf.utilities(posterior(LABELED, np.zeros(4, int)), "expected_entropy")
    found: list[np.ndarray] = []

    def score() -> None:
        for _ in range(20):
            post = posterior(LABELED, np.zeros(4, int))
            found.append(nf.utilities(post, "expected_entropy"))

    threads = [threading.Thread(target=score) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and all(np.array_equal(u, expected) for u in found)


def check_what_is_missing() -> None:
    """Say what to install, without a traceback, where an extra is not there."""
    if importlib.util.find_spec("torch") is None:
        try:
            _ = nf.EmpiricalNTK
        except ImportError as error:
            assert "pip install 'ntkfast[torch]'" in str(error), error
        else:
            raise AssertionError("EmpiricalNTK without torch")
    if importlib.util.find_spec("typer") is None:
        done = subprocess.run([sys.executable, "-m", "ntkfast"], capture_output=True, text=True)
        assert done.returncode == 1 and "pip install 'ntkfast[cli]'" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def main() -> None:
    if len(sys.argv) == 1:
        for isa in _core.supported_isas():
            environment = os.environ | {"NTKFAST_CPU_ISA": isa}
            subprocess.run([sys.executable, __file__, isa], check=True, env=environment)
        check_what_is_missing()
        if hasattr(sys, "_is_gil_enabled") and sys.version_info >= (3, 14):
            import sysconfig

            assert sys._is_gil_enabled() == (not sysconfig.get_config_var("Py_GIL_DISABLED"))
        nf.show_config()
    else:
        assert ops.cpu_isa() == sys.argv[1]
        check_values(np.float64, 1e-10)
        check_values(np.float32, 1e-3)
        check_threads()
        print(f"ntkfast {nf.__version__}, {sys.argv[1]}: values are right")


if __name__ == "__main__":
    main()
