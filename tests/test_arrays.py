"""Arrays of any library, layout and byte order come in; results go back where they came from."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from problems import REPRESENTATIONS, golden, keywords, posterior

import ntkfast as nf
from ntkfast import arrays

NAMES = tuple(row.name for row in nf.criteria())


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("name", ["plain", "cross_entropy"])
def test_torch_round_trip(name, representation):
    p = golden(name)
    plain = posterior(p, representation)
    post = posterior(p, representation, convert=torch.from_numpy)
    options, tensors = keywords(p), keywords(p, torch.from_numpy)
    for criterion in NAMES:
        u = nf.utilities(post, criterion, **tensors)
        assert isinstance(u, torch.Tensor) and u.dtype == torch.float64
        np.testing.assert_array_equal(u, nf.utilities(plain, criterion, **options))
        picked = nf.select(post, criterion, 3, **tensors)
        assert picked.indices.dtype == torch.int64 and picked.utilities.dtype == torch.float64
        np.testing.assert_array_equal(
            picked.indices, nf.select(plain, criterion, 3, **options).indices
        )
    post.condition(torch.tensor([1, 4]), torch.tensor([0, 2]))
    plain.condition([1, 4], [0, 2])
    np.testing.assert_array_equal(post.mean, plain.mean)
    np.testing.assert_array_equal(post.variance, plain.variance)
    assert post.labeled.tolist() == [1, 4] and isinstance(post.labeled, torch.Tensor)
    mask = torch.zeros(len(post), dtype=torch.bool)
    mask[2] = True
    np.testing.assert_array_equal(
        post.covariance(mask, torch.arange(3)), plain.covariance([2], range(3))
    )
    if representation == "features":
        phi, f = torch.randn(2, p["phi_l"].shape[1]), torch.randn(2, p["T"].shape[1])
        assert isinstance(post.predict(phi, f), torch.Tensor)
        assert isinstance(post.predict(phi.numpy(), f), np.ndarray)
        post.extend(phi, f)
        assert len(post.mean) == len(plain.mean) + 2


def test_gradients_and_bfloat16():
    phi, f = torch.randn(9, 5, dtype=torch.bfloat16), torch.randn(9, 3, requires_grad=True)
    post = nf.Posterior.from_features(phi, f, None, None, None)
    same = nf.Posterior.from_features(phi.float().numpy(), f.detach().numpy(), None, None, None)
    np.testing.assert_array_equal(nf.utilities(post, "emoc"), nf.utilities(same, "emoc"))
    assert not post.mean.requires_grad


def variants(a):
    """The same numbers in awkward memory."""
    swapped = a.astype(a.dtype.newbyteorder())
    read_only = a.copy()
    read_only.flags.writeable = False
    spread = np.repeat(np.repeat(a, 2, 0), 3, -1)[::2, ..., ::3] if a.ndim > 1 else np.repeat(a, 2)
    yield swapped
    yield read_only
    yield spread if a.ndim > 1 else spread[::2]
    yield np.asfortranarray(a)
    yield a[::-1].copy()[::-1]
    yield np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layouts_and_byte_orders(representation, dtype):
    p = golden("heteroscedastic")
    expected = nf.select(posterior(p, representation, dtype), "expected_entropy", 5, **keywords(p))
    for which in range(6):
        convert = lambda a, which=which: list(variants(a))[which]  # noqa: E731
        post = posterior(p, representation, dtype, convert)
        found = nf.select(post, "expected_entropy", 5, **keywords(p, convert))
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.utilities, expected.utilities)
        post.condition(convert(np.array([3, 1])), convert(np.array([1, 0])))


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_callers_arrays_never_change(representation, dtype):
    """Nor does the posterior when they do."""
    p = golden("plain")
    given = []

    def convert(a):
        given.append((a.copy(), a))
        return a

    post = posterior(p, representation, dtype, convert)
    options = keywords(p, convert)
    for criterion in NAMES:
        nf.select(post, criterion, 4, **options)
    post.condition([1, 2], convert(np.eye(4)[:2]), convert(np.full(2, 0.3)))
    if representation == "features":
        phi, f = convert(p["phi_l"].astype(dtype)), convert(p["f_l"])
        post.extend(phi, f)
        post.predict(phi, f)
    twin = post.copy()
    for before, after in given:
        np.testing.assert_array_equal(before, after)
    for _, after in given:
        after[...] = 0
    np.testing.assert_array_equal(post.mean, twin.mean)
    np.testing.assert_array_equal(nf.utilities(post, "emoc"), nf.utilities(twin, "emoc"))


def test_results_are_the_callers_own():
    post = posterior(golden("plain"), convert=torch.from_numpy)
    before = post.copy()
    for result in (post.mean, post.variance, post.labeled, nf.utilities(post, "emoc")):
        result.zero_()
    np.testing.assert_array_equal(post.mean, before.mean)
    np.testing.assert_array_equal(post.variance, before.variance)


class Foreign:
    """An array of some library that only speaks DLPack."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


class Namespaced(Foreign):
    def __array_namespace__(self, api_version=None):
        return sys.modules[__name__]


def from_dlpack(array):
    return Namespaced(array)


def test_any_library_with_dlpack():
    p = golden("plain")
    expected = nf.utilities(posterior(p), "emoc")
    found = nf.utilities(posterior(p, convert=Foreign), "emoc")
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, expected)
    found = nf.utilities(posterior(p, convert=Namespaced), "emoc")
    assert isinstance(found, Namespaced)
    np.testing.assert_array_equal(found.array, expected)


class Cuda:
    __cuda_array_interface__ = None


@pytest.mark.parametrize(
    "array",
    [Cuda(), Foreign(np.ones((3, 2)), (2, 0)), torch.ones(3, 2, device="meta")],
    ids=["cupy", "dlpack", "torch"],
)
def test_arrays_on_other_devices(array):
    with pytest.raises(RuntimeError, match=r"features is on device .* not supported: pass"):
        nf.Posterior.from_features(array, np.ones((3, 2)), None, None, None)


def test_import_needs_numpy_alone():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "cupy", "scipy", "sklearn", "tqdm", "matplotlib"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
import numpy as np
import ntkfast as nf
post = nf.Posterior.from_features(np.eye(4), np.eye(4), None, None, None)
assert len(nf.select(post, "emoc", 2).indices) == 2
print(nf.criteria())
assert "LookAheadLearner" in dir(nf) and nf.__version__
for name in ("EmpiricalNTK", "LookAheadLearner"):
    try:
        getattr(nf, name)
    except ImportError as error:
        assert "pip install 'ntkfast[torch]'" in str(error), error
    else:
        raise AssertionError
assert not hasattr(nf, "nothing")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    code = """
import sys, numpy as np, ntkfast as nf
post = nf.Posterior.from_features(np.eye(4), np.eye(4), None, None, None)
nf.select(post, "emoc", 2)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_the_first_bad_number_is():
    big = np.zeros((3000, 700), np.float32)
    big[2999, 3] = np.nan
    with pytest.raises(ValueError, match="x contains NaN at row 2999, column 3"):
        arrays.as_floats("x", big, ("N", "d"))
    with pytest.raises(ValueError, match="x contains -inf at index 2"):
        arrays.as_floats("x", np.array([0, 1, -np.inf]), (3,))
    with pytest.raises(ValueError, match="x contains inf at index 0"):
        arrays.as_floats("x", torch.tensor([float("inf")]), (1,))


def test_masks_that_hide_something_are_refused():
    free = np.ma.masked_array([1.0, 2.0], mask=[False, False])
    assert type(arrays.as_numpy("x", free)) is np.ndarray
    np.testing.assert_array_equal(arrays.as_numpy("x", free), [1.0, 2.0])
    np.testing.assert_array_equal(
        arrays.as_numpy("x", [free, [3.0, 4.0]]), [[1.0, 2.0], [3.0, 4.0]]
    )
    hidden = np.ma.masked_array([[1.0, 2.0], [3.0, 4.0]], mask=[[0, 0], [1, 1]])
    with pytest.raises(TypeError, match=r"x is a masked array with 2 of 4 entries .* at \[1, 0\]"):
        arrays.as_numpy("x", hidden)
    with pytest.raises(TypeError, match=r"x\[0\]\[1\] is a masked array with 2 of 2 entries"):
        arrays.as_numpy("x", [[hidden[0], hidden[1]]])
    with pytest.raises(TypeError, match=r"x\[1\] is a masked array: masks are not heeded"):
        arrays.as_numpy("x", [1.0, np.ma.masked])
    with pytest.raises(TypeError, match="indices is a masked array"):
        arrays.as_indices("indices", np.ma.masked_array([0, 1], mask=[0, 1]), 5)


def test_data_frames_of_numbers():
    pd = pytest.importorskip("pandas")
    numbers = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5]}, index=[9, 7, 8])
    for frame, expected in (
        (numbers, [[1, 0.5], [2, 1.5], [3, 2.5]]),
        (numbers["b"], [0.5, 1.5, 2.5]),
        (numbers.astype("Float64"), [[1, 0.5], [2, 1.5], [3, 2.5]]),
        (numbers.astype({"a": "float32", "b": "float32"}), [[1, 0.5], [2, 1.5], [3, 2.5]]),
        (pd.DataFrame({"a": pd.arrays.SparseArray([0.0, 2.0])}), [[0], [2]]),
        (
            pd.DataFrame({"a": pd.array([1, None], "Int64"), "b": [True, False]}),
            [[1, 1], [np.nan, 0]],
        ),
        (pd.array([1.5, None], "Float64"), [1.5, np.nan]),
    ):
        found = arrays.as_numpy("x", frame)
        assert type(found) is np.ndarray and found.dtype.kind == "f"
        np.testing.assert_array_equal(found, expected)
    assert arrays.as_numpy("x", numbers.astype("float32")).dtype == np.float32
    assert arrays.as_numpy("x", numbers[["a"]]).dtype == np.int64
    index = arrays.as_indices("indices", pd.Series([4, 2], index=[1, 0]), 5)
    np.testing.assert_array_equal(index, [4, 2])
    mask = pd.Series([False, True, False], index=[2, 0, 1])
    for kind in ("bool", "boolean"):
        np.testing.assert_array_equal(arrays.as_indices("mask", mask.astype(kind), 3), [1])
    rng = np.random.default_rng(0)
    phi, f = rng.normal(size=(6, 4)), rng.normal(size=(6, 3))
    post = nf.Posterior.from_features(pd.DataFrame(phi), pd.DataFrame(f), None, None, None)
    same = nf.Posterior.from_features(phi, f, None, None, None)
    np.testing.assert_array_equal(nf.utilities(post, "emoc"), nf.utilities(same, "emoc"))
    assert isinstance(post.mean, np.ndarray)
    for frame, message in (
        (numbers.assign(city="Rome", day=pd.Timestamp(0)), r"'city' \(.*\), 'day' \(.*\) hold no"),
        (pd.Series(["a"]), r"x is a Series, and it \(.*\) holds no numbers"),
        (pd.DataFrame({5: pd.Categorical([1, 2])}), r"5 \(category\) holds no numbers"),
    ):
        with pytest.raises(TypeError, match=message):
            arrays.as_numpy("x", frame)


@pytest.mark.parametrize(
    ("call", "kind", "argument"),
    [
        (lambda p: p.condition([40], [0]), ValueError, "indices"),
        (lambda p: p.condition([0], [7]), ValueError, "targets"),
        (lambda p: p.condition([0], [None]), ValueError, "targets"),
        (lambda p: p.condition([0], ["a"]), TypeError, "targets"),
        (lambda p: p.condition([0], [0], [-1.0]), ValueError, "noise"),
        (lambda p: p.covariance([0.5], [0]), TypeError, "rows"),
        (lambda p: p.extend(np.full((1, 3), np.nan), np.zeros((1, 2))), ValueError, "features"),
        (lambda p: p.extend(np.full((1, 3), 1e300), np.zeros((1, 2))), ValueError, "features"),
        (lambda p: p.extend(np.zeros((1, 3)), np.zeros((1, 4))), ValueError, "outputs"),
        (lambda p: nf.utilities(p, "emok"), ValueError, "criterion"),
        (lambda p: nf.utilities(p, "epig", weights=[1.0]), ValueError, "weights"),
        (lambda p: nf.utilities(p, "epig", temperature="warm"), TypeError, "temperature"),
        (lambda p: nf.utilities(p, "epig", precision="half"), ValueError, "precision"),
        (lambda p: nf.utilities(p, "epig", precision="bf16"), ValueError, "precision"),
        (lambda p: nf.utilities(p, "expected_log_loss"), ValueError, "log_loss_targets"),
        (lambda p: nf.select(p, "epig", 0), ValueError, "batch_size"),
        (lambda p: nf.select(p, "epig", 1.5), TypeError, "batch_size"),
        (lambda p: nf.select(p, "epig", 1, "middle"), ValueError, "mode"),
    ],
)
def test_errors_name_their_argument(call, kind, argument):
    phi = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    post = nf.Posterior.from_features(phi, np.zeros((6, 2)), None, None, None)
    with pytest.raises(kind) as caught:
        call(post)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert isinstance(error, arrays.ArgumentError) and isinstance(error, kind)
        assert error.argument == argument
        assert str(error) == str(caught.value)


def test_a_masked_array_in_a_list_belongs_to_its_argument():
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    with pytest.raises(TypeError, match=r"^x\[1\]\[0\] is a masked array") as caught:
        arrays.as_numpy("x", [[[0.0, 1.0]], [masked]])
    assert caught.value.argument == "x"


def test_out_of_memory_says_what_to_do():
    class OutOfMemoryError(RuntimeError):
        """As torch and cupy name theirs."""

    twice = arrays.memory_advice("wait for more"), arrays.memory_advice("wait for more")
    with pytest.raises(OutOfMemoryError, match=r"tried 3 GiB; wait for more$"), twice[0], twice[1]:
        raise OutOfMemoryError("tried 3 GiB")
    with pytest.raises(RuntimeError, match=r"^other$"), arrays.memory_advice("wait for more"):
        raise RuntimeError("other")
