import io
import time

import numpy as np
import pytest
from problems import REPRESENTATIONS, golden, posterior

import ntkfast as nf
from ntkfast import progress, selection


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_silent_without_a_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "_DELAY_SECONDS", 0)
    assert list(progress.track(range(5), description="working")) == [0, 1, 2, 3, 4]
    assert stream.getvalue() == ""


def test_bar_on_a_terminal(monkeypatch):
    pytest.importorskip("tqdm")
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "_DELAY_SECONDS", 0)
    items = (i for i in range(5))  # without a length
    assert list(progress.track(items, total=5, description="working")) == [0, 1, 2, 3, 4]
    assert "working" in stream.getvalue()
    assert "/5" in stream.getvalue()


def test_short_work_shows_nothing(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    assert list(progress.track(range(3))) == [0, 1, 2]
    assert stream.getvalue().strip() == ""


def test_waiting_shows_the_time(monkeypatch):
    pytest.importorskip("tqdm")
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with progress.waiting("reading"):
        pass
    assert stream.getvalue() == ""  # it was over at once
    monkeypatch.setattr(progress, "_DELAY_SECONDS", 0)
    with progress.waiting("reading"):
        for _ in range(500):
            if "reading: 00:0" in stream.getvalue():
                break
            time.sleep(0.01)
    assert "reading: 00:0" in stream.getvalue()
    assert stream.getvalue().rpartition("\r")[2] == ""  # nothing stays


def test_a_bar_takes_the_place_of_waiting(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("sys.stderr", Terminal())
    with progress.waiting("scoring"):
        hidden = progress._hidden
        assert not hidden.is_set()
        list(progress.track(range(3)))
        assert hidden.is_set()
    assert progress._hidden is None


def test_waiting_without_a_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(progress, "_DELAY_SECONDS", 0)
    with progress.waiting("reading"):
        time.sleep(0.01)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("criterion", ["expected_entropy", "epig", "max_herding"])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_scoring_shows_how_far_it_is(criterion, representation, monkeypatch):
    """Some candidates at a time have the utilities that all at once have, bit for bit."""
    post = posterior(golden("cross_entropy"), representation)
    expected = nf.utilities(post, criterion)
    seen = []

    def track(parts, **keywords):
        seen.append((len(parts), keywords["description"]))
        return parts

    monkeypatch.setattr(selection, "_TILE", 4)
    monkeypatch.setattr(selection, "_PAIRS", 1)
    monkeypatch.setattr(selection, "track", track)
    np.testing.assert_array_equal(nf.utilities(post, criterion), expected)
    assert seen == [(-(-len(expected) // 4), criterion)]
