"""Pools that are shared by processes: the results of one process, bit for bit."""

import numpy as np
import pytest

pytest.importorskip("torch.distributed")
import rank_work

import ntkfast as nf
from ntkfast._posterior.group import leaf_nodes

pytestmark = pytest.mark.filterwarnings("ignore:.*outnumber a quarter", "ignore:.*hardly above")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    assert rank_work.run(max(rank_work.SIZES), folder, rank_work.of_all_sizes) == ""
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    with rank_work.small_parts():
        return rank_work.results(tmp_path_factory.mktemp("alone") / "saved.npz")


def of_own_points(name):
    return name.endswith((": mean", ": variance"))


@pytest.mark.parametrize("size", rank_work.SIZES)
def test_any_number_of_ranks_is_one_process(size, folder, alone):
    """Some ranks hold their features in memory, others on disk."""
    for rank in range(size):
        first, last = rank_work.bounds(size)[rank : rank + 2]
        with np.load(folder / f"results-{size}-{rank}.npz") as found:
            assert set(found.files) == set(alone)
            for name, expected in alone.items():
                if of_own_points(name):
                    expected = expected[first:last]
                assert np.array_equal(found[name], expected), (name, rank)


def test_ties_go_to_the_lowest_point(alone):
    copies = [20, 500, 880]
    for name in ("labels: fisher_variance_reduction", "none: variance_reduction"):
        picked = alone[name].tolist()
        of_copies = [point for point in picked if point in copies]
        assert of_copies == copies[: len(of_copies)]
    assert any(point in copies for point in alone["none: variance_reduction"])


def test_tensors_of_a_gpu_take_the_same_way(folder, alone):
    for rank in range(2):
        first, last = rank_work.bounds(2)[rank : rank + 2]
        with np.load(folder / f"gpu-{rank}.npz") as found:
            for name, expected in alone.items():
                if of_own_points(name):
                    expected = expected[first:last]
                if expected.dtype.kind == "i":
                    assert np.array_equal(found[name], expected), name
                else:
                    np.testing.assert_allclose(found[name], expected, 5e-3, 1e-6, err_msg=name)


def test_a_learner_over_ranks(folder):
    expected = rank_work.learner()
    for rank in range(3):
        with np.load(folder / f"learner-{rank}.npz") as found:
            for name in ("first", "second", "others"):
                assert found[name].tolist() == expected[name].tolist()
            np.testing.assert_allclose(found["predict"], expected["predict"], 1e-5, 1e-6)


def test_what_does_not_match_ends_the_call_on_all_ranks(tmp_path):
    assert rank_work.run(3, tmp_path, rank_work.failing) == ""
    said = [(tmp_path / f"said-{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    expected = [
        ("NaN at row 4, column 2", "rank 1"),
        ("features.shape[1]: it is 6 on rank 0 and 5 on rank 2",),
        ("labeled_features",),
        ("targets",),
        ("indices[0] = 900 is out of range",),
        ("batch_size: it is 3 on rank 0 and 4 on rank 1",),
        ("about call: it is covariance on rank 0 and utilities on rank 1",),
        ("nowhere", "RuntimeError: save has failed on rank 1, and so on all"),
        ("files: 0",),
        ("some-1-of-3.npz", "RuntimeError: load has failed on rank 1, and so on all"),
        ("holds the points of rank 0 of 3: load it with group=",),
        ("some-0-of-3.npz, some-2-of-3.npz: load it without group= if one process has saved it",),
        ("the ranks do not agree about what choose returned: it is 0 on rank 0 and 1 on rank 1",),
        ("choose returned 7; expected a position in [0, 3)",),
        ("the ranks do not agree about radius: it is 1.0 on rank 0 and 2.0 on rank 1",),
        ("extend needs all features in the memory of one process",),
        ("cannot be pickled, because a pickle has no ranks: use save",),
        ("as before: True",),
    ]
    for rank, lines in enumerate(said):
        for line, parts in zip(lines, expected, strict=False):
            for part in parts if rank == 0 else parts[:1]:
                assert part in line, (rank, line)
    assert said[0][0].startswith("RuntimeError: from_features has failed on rank 1")
    assert said[1][0].startswith("ArgumentValueError: features contains NaN")
    # Then a rank that does not call, which rank 1 is, and one that dies in the middle of a call.
    for rank, lines in enumerate(said):
        later = lines[len(expected) :]
        assert later[1::2] == ["as before: True"] * (2 - rank)
        for line in later[::2]:
            assert line.startswith(
                f"RuntimeError: rank {rank} has lost the other ranks in condition"
            )
    assert "Timed out" in said[0][len(expected)]


def test_what_is_no_group_is_refused():
    phi = np.random.default_rng(0).normal(size=(5, 3))
    with pytest.raises(TypeError, match="group must be a process group"):
        nf.Posterior.from_features(phi, phi, None, None, None, group=3)
    with pytest.raises(ValueError, match="sketch"):
        nf.LookAheadLearner(None, sketch="auto", group=3)


@pytest.mark.parametrize("leaves", [1, 2, 3, 13, 64])
def test_nodes_are_the_same_for_any_cut(leaves):
    """Nodes of two parts, added where they are siblings, are those of the whole."""
    for cut in range(leaves + 1):
        nodes = leaf_nodes(0, cut) + leaf_nodes(cut, leaves)
        covered = [i for level, at in nodes for i in range(at << level, (at + 1) << level)]
        assert covered == list(range(leaves))
