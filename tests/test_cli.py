"""The command line, run as a user would: in a process of its own, with files."""

import csv
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from terminal import run

import ntkfast as nf
from ntkfast import store

pytest.importorskip("typer")

POINTS, DIMENSION, CLASSES = 60, 24, 3
STRATEGIES = ["random", "margin", "look-ahead"]


def read_csv(text):
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["rank", "index", "utility"]
    ranks, indices, utilities = zip(*rows[1:], strict=True)
    assert [int(rank) for rank in ranks] == list(range(1, len(rows)))
    return np.array(indices, dtype=int), np.array(utilities, dtype=float)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    labeled = np.array([5, 17, 40, 3, 58])
    return {
        "features": rng.standard_normal((POINTS, DIMENSION)),
        "outputs": 2 * rng.standard_normal((POINTS, CLASSES)),
        "labeled_indices": labeled,
        "targets": rng.integers(CLASSES, size=len(labeled)),
    }


@pytest.fixture
def folder(tmp_path, arrays):
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return tmp_path


def rank(folder, *extra, leave_out=(), **replace):
    """Run `ntkfast rank` on the files of `folder`; keywords name other files, None leaves out."""
    files = {
        name: folder / f"{name}.npy"
        for name in ("features", "outputs", "labeled_indices", "targets")
    }
    files |= replace
    options = [
        text
        for name, file in files.items()
        if file is not None
        for text in (f"--{name.replace('_', '-')}", file)
    ]
    return run("rank", *options, *extra)


def posterior(arrays, **settings):
    labeled = arrays["labeled_indices"]
    return nf.Posterior.from_features(
        arrays["features"],
        arrays["outputs"],
        arrays["features"][labeled],
        arrays["outputs"][labeled],
        arrays["targets"],
        **{"loss": "cross_entropy", "labeled_indices": labeled, **settings},
    )


def test_rank_is_select(folder, arrays):
    result = rank(folder)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    indices, utilities = read_csv(result.stdout)
    expected = nf.select(
        posterior(arrays), "fisher_variance_reduction", POINTS - len(arrays["targets"]), mode="top"
    )
    np.testing.assert_array_equal(indices, expected.indices)
    np.testing.assert_array_equal(utilities, expected.utilities)  # written without loss
    assert set(indices) == set(range(POINTS)) - set(arrays["labeled_indices"])


def test_rank_options_reach_the_library(folder, arrays):
    result = rank(
        folder,
        *("--loss", "squared", "--criterion", "expected_entropy", "--mode", "sequential"),
        *("--batch-size", 4, "--ridge", 0.5, "--temperature", 0.3, "--precision", "float64"),
    )
    assert result.returncode == 0, result.stderr
    indices, utilities = read_csv(result.stdout)
    expected = nf.select(
        posterior(arrays, loss="squared", ridge=0.5),
        "expected_entropy",
        4,
        mode="sequential",
        temperature=0.3,
        precision="float64",
    )
    np.testing.assert_array_equal(indices, expected.indices)
    np.testing.assert_array_equal(utilities, expected.utilities)


@pytest.mark.parametrize(
    ("criterion", "options", "settings"),
    [
        ("uncertainty_herding", ["--similarity", "cosine"], dict(similarity="cosine")),
        ("max_herding", ["--radius", 0.4], dict(radius=0.4)),
        ("prob_cover", [], {}),
    ],
)
def test_rank_by_coverage(folder, arrays, criterion, options, settings):
    result = rank(folder, "--criterion", criterion, "--mode", "sequential", "-b", 5, *options)
    assert result.returncode == 0, result.stderr
    indices, utilities = read_csv(result.stdout)
    expected = nf.select(posterior(arrays), criterion, 5, **settings)
    np.testing.assert_array_equal(indices, expected.indices)
    np.testing.assert_array_equal(utilities, expected.utilities)


def test_rank_settings_of_the_posterior(folder, arrays):
    result = rank(folder, "--label-scale", 3.5, "--residual-temperature", 1, "--criterion", "emoc")
    assert result.returncode == 0, result.stderr
    expected = nf.select(
        posterior(arrays, label_scale=3.5, residual_temperature=1), "emoc", POINTS - 5, mode="top"
    )
    np.testing.assert_array_equal(read_csv(result.stdout)[1], expected.utilities)


@pytest.mark.parametrize(
    ("targets", "chosen", "why"),
    [
        (np.array([0, 2, 1, 0, 2]), "fisher_variance_reduction", "targets are classes"),
        (np.eye(CLASSES)[[0, 2, 1, 0, 2]], "fisher_variance_reduction", "targets are classes"),
        (np.full((5, CLASSES), 0.5), "variance_reduction", "targets are those of a regression"),
        (None, "variance_reduction", "no targets tell"),
        ("one output", "variance_reduction", "there is one output"),
    ],
    ids=["classes", "one-hot", "numbers", "none", "one output"],
)
def test_rank_guesses_what_targets_are(folder, arrays, targets, chosen, why):
    """For squared loss, as `LookAheadLearner` does: by whether there are classes; it says so."""
    files = {}
    if targets is None:
        files = dict(targets=None, labeled_indices=None)
    elif isinstance(targets, str):
        np.save(folder / "outputs.npy", arrays["outputs"][:, :1])
        np.save(folder / "targets.npy", np.zeros((5, 1)))
    else:
        np.save(folder / "targets.npy", targets)
    result = rank(folder, "--loss", "squared", "-b", 3, "--json", **files)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["criterion"] == chosen
    assert result.stderr.startswith(f"ntkfast: ranked by {chosen}, because {why}")
    named = rank(folder, "--loss", "squared", "-b", 3, "--json", "--criterion", chosen, **files)
    assert (named.stdout, named.stderr) == (result.stdout, "")


def test_rank_a_kernel_of_blocks(folder, arrays):
    """Features of `outputs="full"`: k rows for each point."""
    rng, labeled = np.random.default_rng(1), arrays["labeled_indices"]
    phi = rng.standard_normal((POINTS, CLASSES, DIMENSION))
    pool = phi.reshape(-1, DIMENSION)
    np.save(folder / "features.npy", pool)
    full = dict(outputs="full", rows_per_point=CLASSES)
    stored = write_store(folder / "pool", pool, arrays["outputs"], points=POINTS, **full)
    post = nf.Posterior.from_features(
        pool,
        arrays["outputs"],
        phi[labeled].reshape(-1, DIMENSION),
        arrays["outputs"][labeled],
        arrays["targets"],
        loss="cross_entropy",
        labeled_indices=labeled,
    )
    expected = nf.select(post, "expected_entropy", 4, mode="top")
    for files in ({}, dict(features=stored, outputs=None)):
        result = rank(folder, "-b", 4, "--criterion", "expected_entropy", **files)
        assert result.returncode == 0, result.stderr
        np.testing.assert_array_equal(read_csv(result.stdout)[0], expected.indices)


def test_rank_json(folder):
    indices, utilities = read_csv(rank(folder, "-b", 3).stdout)
    result = rank(folder, "-b", 3, "--json", "-o", folder / "next.json")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    answer = json.loads((folder / "next.json").read_text())
    assert [row["rank"] for row in answer["ranked"]] == [1, 2, 3]
    assert [row["index"] for row in answer["ranked"]] == list(indices)
    assert [row["utility"] for row in answer["ranked"]] == list(utilities)
    del answer["ranked"]
    expected = {"criterion": "fisher_variance_reduction", "mode": "top"}
    assert answer == {**expected, "pool_size": POINTS, "unlabeled": POINTS - 5}


def test_rank_log_loss_targets(folder, arrays):
    target = np.full((POINTS, CLASSES), 1 / CLASSES)
    np.save(folder / "q.npy", target)
    result = rank(
        folder, "--criterion", "expected_log_loss", "-b", 3, "--log-loss-targets", folder / "q.npy"
    )
    assert result.returncode == 0, result.stderr
    expected = nf.select(
        posterior(arrays), "expected_log_loss", 3, mode="top", log_loss_targets=target
    )
    np.testing.assert_array_equal(read_csv(result.stdout)[0], expected.indices)


@pytest.mark.parametrize("kind", ["npz", "compressed npz", "safetensors", "chosen array"])
def test_rank_reads_every_format(folder, arrays, kind):
    names = dict.fromkeys(arrays)
    if kind == "safetensors":
        from safetensors.numpy import save_file

        save_file(arrays, folder / "all.safetensors", metadata={"by": "a test"})
        names = dict.fromkeys(arrays, folder / "all.safetensors")
    elif kind == "chosen array":
        np.savez(folder / "all.npz", **{f"my_{name}": array for name, array in arrays.items()})
        names = {name: f"{folder / 'all.npz'}::my_{name}" for name in arrays}
    else:
        save = np.savez if kind == "npz" else np.savez_compressed
        save(folder / "all.npz", **arrays)
        names = dict.fromkeys(arrays, folder / "all.npz")
    assert rank(folder, **names).stdout == rank(folder).stdout != ""


def write_store(folder, features, outputs, /, finish=True, **others):
    description = {
        "network": "a",
        "data": "b",
        "fitted_sketch": None,
        "layers": ["c"],
        "points": len(features),
        "outputs": "sum",
        "draws": 1,
        "sketch": "sparse",
        "seed": 0,
        "n_features": features.shape[1],
        "dtype": str(features.dtype),
        "n_outputs": outputs.shape[1],
        "outputs_dtype": str(outputs.dtype),
        "rows_per_point": 1,
    }
    with store.StoreWriter(folder, {**description, **others}) as writer:
        writer.write(0, features[: None if finish else 40], outputs[: None if finish else 40])
        if finish:
            writer.finish()
        else:
            writer.flush()
    return folder


def test_rank_reads_a_store(folder, arrays):
    pool = write_store(folder / "pool", arrays["features"], arrays["outputs"])
    expected = rank(folder).stdout
    assert rank(folder, features=f"{pool}/", outputs=None).stdout == expected != ""
    # Other outputs, where they are named.
    np.save(folder / "other.npy", 2 * arrays["outputs"])
    other = rank(folder, outputs=folder / "other.npy").stdout
    assert rank(folder, features=pool, outputs=folder / "other.npy").stdout == other != expected


def test_rank_reads_a_store_of_labelled_points(folder, arrays):
    labeled, phi, f = (arrays[name] for name in ("labeled_indices", "features", "outputs"))
    pool = write_store(folder / "pool", phi, f)
    there = write_store(folder / "labeled", phi[labeled], f[labeled], data="other")
    np.save(folder / "phi_l.npy", phi[labeled])
    np.save(folder / "out_l.npy", f[labeled])
    files = dict(labeled_features=folder / "phi_l.npy", labeled_outputs=folder / "out_l.npy")
    expected = rank(folder, labeled_indices=None, **files)
    stored = dict(features=pool, outputs=None, labeled_indices=None, labeled_features=there)
    assert rank(folder, **stored).stdout == expected.stdout != ""
    stored["labeled_features"] = write_store(folder / "x", phi[labeled], f[labeled], network="b")
    assert_one_line(
        rank(folder, **stored),
        "labeled_features: .*x holds features of another network .* do not fit together",
    )


def test_rank_stores_that_are_none(folder, arrays):
    pool = write_store(folder / "pool", arrays["features"], arrays["outputs"], finish=False)
    assert_one_line(
        rank(folder, features=pool, outputs=None), r"features: .* 20 of 60 points are missing"
    )
    message = "features: .*nothing is no store of features"
    (folder / "nothing").mkdir()
    assert_one_line(rank(folder, features=folder / "nothing", outputs=None), message)
    assert_one_line(rank(folder, outputs=None), "outputs: --outputs is missing; only a store")


def test_rank_widens_bfloat16(folder, arrays):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    rounded = torch.tensor(arrays["features"]).bfloat16()
    save_file({"features": rounded}, folder / "features.safetensors")
    np.save(folder / "rounded.npy", rounded.float().numpy())
    narrow = rank(folder, features=folder / "features.safetensors")
    assert narrow.returncode == 0, narrow.stderr
    assert narrow.stdout == rank(folder, features=folder / "rounded.npy").stdout


def test_rank_separate_labeled_files(folder, arrays):
    labeled = arrays["labeled_indices"]
    np.save(folder / "phi_l.npy", arrays["features"][labeled])
    np.save(folder / "out_l.npy", arrays["outputs"][labeled])
    result = rank(
        folder,
        labeled_indices=None,
        labeled_features=folder / "phi_l.npy",
        labeled_outputs=folder / "out_l.npy",
    )
    assert result.returncode == 0, result.stderr
    assert len(read_csv(result.stdout)[0]) == POINTS  # none of the pool is known to be labelled


def test_rank_without_labels(folder):
    result = rank(folder, "-b", 7, "--mode", "sequential", labeled_indices=None, targets=None)
    assert result.returncode == 0, result.stderr
    assert len(set(read_csv(result.stdout)[0])) == 7


def test_rank_writes_a_file_or_nothing(folder):
    output = folder / "next.csv"
    assert rank(folder, "-b", 5, "-o", output).returncode == 0
    before = output.read_text()
    assert len(read_csv(before)[0]) == 5
    assert rank(folder, "-b", POINTS, "-o", output).returncode == 2
    assert output.read_text() == before
    assert not list(folder.glob(".*"))


def test_rank_to_a_closed_pipe(folder):
    command = " ".join(
        [f"'{sys.executable}' -m ntkfast.cli rank"]
        + [f"--{n} '{folder}/{n}.npy'" for n in ("features", "outputs")]
        + ["| true"]
    )
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert result.stderr == ""


def shell(command, **environment):
    """Run `{ntkfast}`, the command, in a shell."""
    return subprocess.run(
        command.format(ntkfast=f"'{sys.executable}' -m ntkfast"),
        shell=True,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
        env={**os.environ, **environment},
    )


def test_the_reader_of_a_pipe_is_gone():
    result = shell("({ntkfast} info; echo $? >&2) | true")
    assert result.stderr == "1\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
@pytest.mark.parametrize("command", ["info", "rank"])
def test_a_full_disk(folder, command):
    if command == "rank":
        command += f" --features '{folder}/features.npy' --outputs '{folder}/outputs.npy'"
    result = shell(f"{{ntkfast}} {command} > /dev/full")
    assert_one_line(result, "standard output: No space left on device")


@pytest.mark.skipif(sys.platform == "win32", reason="closes standard output in a shell")
def test_rank_without_standard_output(folder):
    files = f"--features '{folder}/features.npy' --outputs '{folder}/outputs.npy'"
    assert_one_line(shell(f"{{ntkfast}} rank {files} >&-"), "standard output: it is closed")


def test_names_of_all_kinds(tmp_path, arrays):
    """Files whose names are of letters that a terminal lacks, or of no letters at all."""
    for name in ["ünïcode ✓ 文"] + ["caf\udce9"] * (sys.platform == "linux"):
        folder = tmp_path / name
        folder.mkdir()
        for array in ("features", "outputs"):
            np.save(folder / f"{array}.npy", arrays[array])
        outputs = f"--outputs '{folder}/outputs.npy'"
        result = shell(
            f"{{ntkfast}} rank --features '{folder}/features.npy' {outputs} -o '{folder}/näch.csv'"
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert len(read_csv((folder / "näch.csv").read_text())[0]) == POINTS
        result = shell(
            f"{{ntkfast}} rank --features '{folder}/none.npy' {outputs}", PYTHONIOENCODING="ascii"
        )
        assert_one_line(result, "none.npy is not there")


class Explosive:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def damaged(folder, arrays, what):
    """Write a bad file and return the options of `rank` that name it."""
    path = folder / "bad.npy"
    features = arrays["features"].copy()
    match what:
        case "missing":
            path = folder / "nowhere.npy"
        case "a folder":
            path.mkdir()
        case "unknown ending":
            path = folder / "features.csv"
            path.write_text("1,2,3")
        case "empty":
            path.touch()
        case "text":
            path.write_text("not an array at all, but long enough to hold a header " * 5)
        case "truncated npy":
            path.write_bytes((folder / "features.npy").read_bytes()[:-50])
        case "npy header cut":
            path.write_bytes((folder / "features.npy").read_bytes()[:40])
        case "pickled npy":
            np.save(path, np.array([Explosive(str(folder / "exploded"))]), allow_pickle=True)
        case "pickle":
            path.write_bytes(pickle.dumps(Explosive(str(folder / "exploded"))))
        case "truncated npz":
            path = folder / "bad.npz"
            np.savez(path, features=features)
            path.write_bytes(path.read_bytes()[:1000])
        case "corrupt npz":
            path = folder / "bad.npz"
            np.savez_compressed(path, features=features)
            data = bytearray(path.read_bytes())
            data[200:260] = bytes(60)
            path.write_bytes(data)
        case "npz without the array":
            path = folder / "bad.npz"
            np.savez(path, a=features, b=features)
        case "truncated safetensors" | "safetensors header":
            from safetensors.numpy import save_file

            path = folder / "bad.safetensors"
            save_file({"features": features}, path)
            data = path.read_bytes()
            path.write_bytes(
                data[:-9] if what == "truncated safetensors" else b"\xff" * 8 + data[8:]
            )
        case "safetensors shape":
            header = b'{"features":{"dtype":"F64","shape":[60,9],"data_offsets":[0,3840]}}'
            path = folder / "bad.safetensors"
            path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(3840))
        case "strings":
            np.save(path, np.array([["a", "b"]] * POINTS))
        case "complex":
            np.save(path, features + 1j)
        case "one dimension":
            np.save(path, features[:, 0])
        case "rows":
            np.save(path, features[:-1])
        case "nan":
            features[7, 2] = np.nan
            np.save(path, features)
        case "integers":
            np.save(path, features.astype(np.int64))
        case "infinity":
            features[7, 2] = np.inf
            np.save(path, features)
    return {"features": path}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "not there"),
        ("a folder", "bad.npy is no store of features"),
        ("unknown ending", "not a .npy, .npz or .safetensors"),
        ("empty", "cannot read"),
        ("text", "damaged"),
        ("truncated npy", "bad.npy: it is cut short"),
        ("npy header cut", "bad.npy: it is cut short"),
        ("pickled npy", "never loaded"),
        ("pickle", "never loaded"),
        ("truncated npz", "cannot read"),
        ("corrupt npz", "cannot read"),
        ("npz without the array", "'features' but a, b"),
        ("truncated safetensors", "cut short"),
        ("safetensors header", "cut short"),
        ("safetensors shape", r"shape \[60, 9\]"),
        ("strings", "real numbers"),
        ("complex", "real numbers"),
        ("one dimension", r"\(60,\)"),
        ("rows", "59"),
        ("nan", "bad.npy: features contains NaN at row 7"),
        ("infinity", "bad.npy: features contains inf at row 7"),
        ("integers", "bad.npy: features has dtype int64; expected float16, float32 or float64"),
    ],
)
def test_rank_bad_file(folder, arrays, what, message):
    result = rank(folder, **damaged(folder, arrays, what))
    assert_one_line(result, message)
    assert "features" in result.stderr
    assert not (folder / "exploded").exists()


def assert_one_line(result, message):
    assert result.returncode == 2, (result.stdout, result.stderr)
    assert result.stdout == ""
    assert re.fullmatch(r"ntkfast: error: [^\n]+\n", result.stderr), result.stderr
    assert re.search(message, result.stderr), result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--criterion", "best"], "criterion"),
        (["--criterion", "expected_log_loss"], "log_loss_targets"),
        (["--loss", "hinge"], "loss"),
        (["--mode", "both", "-b", "3"], "mode"),
        (["--mode", "sequential"], "batch-size"),
        (["--batch-size", "56"], "56"),
        (["--ridge", "0"], "ridge"),
        (["--ridge", "nan"], "ridge"),
        (["--ridge", "much"], "ridge"),
        (["--criterion", "max_herding", "--radius", "0"], "radius"),
        (["--radius", "wide"], "radius"),
        (["--criterion", "max_herding", "--similarity", "ball"], "similarity"),
        (["--temperature", "-1"], "temperature"),
        (["--precision", "float8"], "precision"),
        (["--label-scale", "0"], "label_scale"),
        (["--label-scale", "wide"], "label_scale: expected a number or auto, got 'wide'"),
        (["--residual-temperature", "-1"], "residual_temperature"),
        (["--features", ""], "features: expected the name of a file, got ''"),
        (["--targets", "::y"], "targets: expected the name of a file, got '::y'"),
        (["--output", "nowhere/next.csv"], "folder"),
        (["--output", ""], "output: expected the name of a file"),
    ],
)
def test_rank_bad_option(folder, options, message):
    assert_one_line(rank(folder, *options), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--criterion", "best"], "criterion"),
        (["--criterion", "expected_log_loss"], "--log-loss-targets"),
        (["--loss", "hinge"], "loss"),
        (["--mode", "both"], "mode"),
        (["--mode", "sequential"], "--batch-size"),
        (["--ridge", "-1"], "ridge"),
        (["--temperature", "0"], "temperature"),
        (["--precision", "tf32"], "precision"),
        (["--loss", "squared", "--label-scale", "2"], "label_scale belongs to cross-entropy"),
        (["--loss", "squared", "--residual-temperature", "2"], "belongs to cross-entropy"),
        (["--labeled-features", "nowhere.npy"], "labeled_indices"),
        (["--output", "nowhere/next.csv"], "folder of nowhere/next.csv is not there"),
        pytest.param(
            ["--output", "/proc/next.csv"],
            "folder of /proc/next.csv cannot be written to",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="a folder closed to root too"),
        ),
        (["--output", "."], "output: . is a folder"),
    ],
)
def test_rank_options_come_before_files(folder, options, message):
    # A file of the wrong kind would be the first thing found otherwise.
    (folder / "features.npy").write_text("no array")
    assert_one_line(rank(folder, *options), message)


def test_rank_batch_size_is_positive(folder):
    result = rank(folder, "--batch-size", 0)
    assert result.returncode == 2 and "--batch-size" in result.stderr


def test_rank_to_a_device(folder):
    assert rank(folder, "-o", os.devnull).returncode == 0


def test_rank_everything_labelled(folder):
    np.save(folder / "labeled_indices.npy", np.arange(POINTS))
    np.save(folder / "targets.npy", np.zeros(POINTS, int))
    for options in ((), ("-b", 3)):
        assert_one_line(rank(folder, *options), "all 60 points .* no point is left to rank")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("targets", np.array([0, 1, 2, 0, 3]), "targets"),
        ("targets", np.array([0, 1, 2, 0]), "targets"),
        ("targets", np.array([0.5, 1, 2, 0, 1]), "targets"),
        ("labeled_indices", np.array([5, 17, 40, 3, 60]), "60 is not a row"),
        ("labeled_indices", np.array([5, 17, 40, 3, -1]), "-1 is not a row"),
        ("labeled_indices", np.array([5, 17, 40, 3, 5]), "labeled_indices"),
        ("labeled_indices", np.array([5.0, 17, 40, 3, 1]), "integers"),
        ("outputs", np.zeros((POINTS - 1, CLASSES)), "outputs"),
        ("outputs", np.zeros((POINTS, 0)), "outputs"),
        ("features", np.zeros((0, DIMENSION)), r"features has shape \(0, 24\)"),
        ("features", np.float64(3), r"features has shape \(\)"),
    ],
)
def test_rank_bad_array(folder, name, array, message):
    np.save(folder / f"{name}.npy", array)
    assert_one_line(rank(folder), message)


@pytest.mark.parametrize("name", ["outputs", "targets", "log_loss_targets"])
def test_rank_names_the_file(folder, arrays, name):
    array = np.full((5 if name == "targets" else POINTS, CLASSES), 1 / CLASSES)
    array[3, 1] = np.nan
    np.savez(folder / "other.npz", here=array)
    spec = f"{folder / 'other.npz'}::here"
    files = {"log_loss_targets": spec, name: spec}
    result = rank(folder, "--criterion", "expected_log_loss", **files)
    assert_one_line(result, f"{re.escape(spec)}: {name} contains NaN at row 3, column 1")


def test_rank_labeled_mask(folder, arrays):
    mask = np.zeros(POINTS, bool)
    mask[arrays["labeled_indices"]] = True
    np.save(folder / "mask.npy", mask)
    np.save(folder / "sorted.npy", arrays["targets"][np.argsort(arrays["labeled_indices"])])
    indices, utilities = read_csv(
        rank(folder, labeled_indices=folder / "mask.npy", targets=folder / "sorted.npy").stdout
    )
    expected, values = read_csv(rank(folder).stdout)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(utilities, values, rtol=1e-9)
    np.save(folder / "mask.npy", mask[:-1])
    result = rank(folder, labeled_indices=folder / "mask.npy", targets=folder / "sorted.npy")
    assert_one_line(result, r"labeled_indices has shape \(59,\); expected \(60,\)")


def test_rank_incomplete_labels(folder):
    again = {"labeled_features": folder / "features.npy"}
    assert_one_line(rank(folder, **again), "labeled_indices")
    assert_one_line(rank(folder, labeled_indices=None), "targets")
    assert_one_line(rank(folder, targets=None), "targets")


def test_rank_does_not_load_torch(folder):
    # a command that needs none of it should not take seconds to start
    code = (
        "import sys, ntkfast.cli\n"
        f"sys.argv = ['ntkfast', 'rank', '--features', {str(folder / 'features.npy')!r},"
        f" '--outputs', {str(folder / 'outputs.npy')!r}]\n"
        "try: ntkfast.cli.main()\n"
        "finally: assert not {'torch', 'matplotlib'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_interrupt(tmp_path):
    rng = np.random.default_rng(0)
    points = 60_000  # minutes of scoring
    np.save(tmp_path / "features.npy", rng.standard_normal((points, 4), dtype=np.float32))
    np.save(tmp_path / "outputs.npy", rng.standard_normal((points, 20), dtype=np.float32))
    command = [sys.executable, "-m", "ntkfast.cli", "rank", "--criterion", "expected_entropy"]
    command += ["--features", tmp_path / "features.npy", "--outputs", tmp_path / "outputs.npy"]
    command += ["-o", tmp_path / "ranked.csv"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not (tmp_path / "ranked.csv").exists()


def test_help_teaches():
    top = run("--help")
    assert top.returncode == 0
    for word in ("Look-ahead active learning", "--version", "rank", "info", "bench", "demo"):
        assert word in top.stdout
    for code in ("0 done", "1 something is not installed", "2 bad input", "130 Ctrl-C"):
        assert code in " ".join(top.stdout.split())
    text = run("rank", "--help").stdout
    for word in ("Examples", "(N, d)", "(N, k)", ".safetensors", "--labeled-indices", "logits"):
        assert word in text
    assert "[bold]" not in text
    # What the library says of its arguments, and not a text of its own.
    words = " ".join(re.sub("[^ -~]", " ", text).split())
    for sentence in ("residual label_scale (e_y - softmax(F / T_r))", "at least 1; for n = 0"):
        assert sentence in words
    assert run().returncode in (0, 2)  # typer's choice has changed; the help is shown either way


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ntkfast rank --criterion epi", ["epig"]),
        ("ntkfast rank --loss ", ["cross_entropy", "squared"]),
        ("ntkfast rank --features fea", []),  # bash goes on with names of files
    ],
)
def test_completion(words, expected):
    result = run(
        _NTKFAST_COMPLETE="complete_bash",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split(" ")) - 1),
    )
    assert [line for line in result.stdout.split("\n") if line] == expected, result.stderr
    assert result.returncode == 0


def test_version():
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"ntkfast {nf.__version__}\n"), result.stderr


def test_python_m():
    result = subprocess.run(
        [sys.executable, "-m", "ntkfast", "--version"], capture_output=True, text=True, timeout=60
    )
    assert result.stdout == f"ntkfast {nf.__version__}\n", result.stderr


def test_usage_error():
    result = run("rank", "--features", "x.npy")
    assert result.returncode == 2
    assert "--outputs" in result.stderr
    assert "Traceback" not in result.stderr


def test_info():
    result = run("info")
    assert result.returncode == 0, result.stderr
    for word in ("Python", "numpy", nf.ops.cpu_isa(), "threads", "CUDA", "torch"):
        assert word in result.stdout


def test_info_json():
    config = json.loads(run("info", "--json").stdout)
    assert config["Packages"]["numpy"] == np.__version__
    assert config["Compiled core"]["supported"] == nf._core.supported_isas()


def test_info_on_cuda():
    from ntkfast import _core

    line = next(r for r in run("info").stdout.splitlines() if "CUDA in this build" in r)
    assert ("no" in line.split()) != _core.cuda_compiled()
    # What a build with CUDA says, with and without a usable GPU.
    for available, problem, message in (
        (True, "", "CUDA in this build +│ yes +│"),
        (False, "no driver", "CUDA in this build +│ yes, but not usable: no driver +│"),
    ):
        code = (
            "import sys, ntkfast.cli\nfrom ntkfast import _core\n"
            f"_core.cuda_compiled, _core.cuda_available = lambda: True, lambda: {available}\n"
            f"_core.cuda_problem = lambda: {problem!r}\n"
            "sys.argv = ['ntkfast', 'info']; ntkfast.cli.main()"
        )
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"},
        )
        assert re.search(message, result.stdout), (result.stdout, result.stderr)


@pytest.mark.parametrize("command", ["info", "bench", "demo"])
@pytest.mark.parametrize(
    ("variable", "value"), [("NTKFAST_NUM_THREADS", "abc"), ("NTKFAST_CPU_ISA", "foo")]
)
def test_nonsense_in_the_environment(command, variable, value):
    assert_one_line(run(command, **{variable: value}), f"{variable}={value}: expected")


def test_bench():
    result = run("bench", *("--candidates", 20, "--points", 50, "--dimension", 16, "--rounds", 1))
    assert result.returncode == 0, result.stderr
    assert "NumPy" in result.stdout
    error = float(re.search(r"ntkfast .*?(\d+e[-+]\d+)", result.stdout)[1])
    assert error < 1e-4
    assert_one_line(run("bench", "--candidates", 60, "--points", 50), "candidates")
    small = ("--candidates", 5, "--points", 12, "--dimension", 4, "--rounds", 1)
    timings = json.loads(run("bench", "--json", *small).stdout)
    assert [timing["name"] for timing in timings] == ["ntkfast", "NumPy, one softmax per label"]


def test_demo(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("mlxtend")
    plt = pytest.importorskip("matplotlib.pyplot")
    odd = "caf\udce9" if sys.platform == "linux" else "café"  # a name of no letters
    # Pictures bring their own background, whatever the style of the user.
    (tmp_path / "dark").write_text("figure.facecolor: black\nsavefig.transparent: True\n")
    with ThreadPoolExecutor(2) as both:
        results = list(
            both.map(
                lambda options: run(
                    *("demo", "--seeds", 1, "--rounds", 1, *options),
                    demo_settings={"TRAINING_STEPS": 30, "CANDIDATES": 200},
                    MATPLOTLIBRC=tmp_path / "dark",
                ),
                (("--out", tmp_path / "a"), ("--json", "--out", tmp_path / odd)),
            )
        )
    for result in results:
        assert (result.returncode, result.stderr) == (0, "")
    assert "look-ahead" in results[0].stdout
    answer = json.loads(results[1].stdout)
    assert answer["labels"] == [40, 60]
    accuracies = [answer["strategies"][name]["accuracies"] for name in STRATEGIES]
    table = re.findall(r"^│ +(?:40|60) +│(.*)", results[0].stdout, re.MULTILINE)
    shown = [re.findall(r"0\.\d{3}", row) for row in table]
    assert shown == [[f"{a[0][step]:.3f}" for a in accuracies] for step in range(2)]  # same seed
    for name, file in zip(
        ("learning_curves.png", "picked_images.png"), answer["files"], strict=True
    ):
        assert file == str(tmp_path / odd / name)
        picture = (tmp_path / "a" / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        np.testing.assert_array_equal(plt.imread(tmp_path / "a" / name)[0, 0], 1)  # opaque white
        assert picture == (tmp_path / odd / name).read_bytes()


def test_demo_bad_folder(tmp_path):
    pytest.importorskip("mlxtend")
    pytest.importorskip("torch")
    (tmp_path / "file").touch()
    assert_one_line(run("demo", "--out", tmp_path / "file"), "file")


def test_demo_without_its_packages():
    code = (
        "import sys; sys.modules['mlxtend'] = None; sys.argv = ['ntkfast', 'demo']\n"
        "import ntkfast.cli; ntkfast.cli.main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "pip install 'ntkfast[demo]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_typer():
    code = "import sys; sys.modules['typer'] = None; import ntkfast.cli; ntkfast.cli.main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "pip install 'ntkfast[cli]'" in result.stderr
    assert "Traceback" not in result.stderr
