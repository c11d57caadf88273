import io

import pytest

from ntkfast import progress


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
