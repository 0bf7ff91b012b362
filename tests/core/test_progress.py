"""Progress bars: seen by people, absent from executed notebooks."""

import sys
from types import SimpleNamespace

import pytest

from ktlib.progress import VARIABLE, progress, shown


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def test_items_come_through_unchanged(monkeypatch):
    monkeypatch.setenv(VARIABLE, "on")
    assert list(progress(iter("abc"), "letters", total=3)) == ["a", "b", "c"]


def test_bar_is_shown_when_asked_for(monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "on")
    list(progress(range(2), "two steps"))
    assert "two steps" in capsys.readouterr().err


def test_nothing_is_written_in_a_batch_run(monkeypatch, capsys):
    monkeypatch.setattr("ktlib.progress._in_notebook", lambda: True)
    monkeypatch.setenv(VARIABLE, "off")
    list(progress(range(2), "two steps"))
    assert capsys.readouterr() == ("", "")


def test_a_log_file_gets_no_bar(capsys):
    list(progress(range(2), "two steps"))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    assert shown()


class ZMQInteractiveShell:
    """Named as the shell of a notebook kernel."""


@pytest.mark.parametrize(("shell", "expected"), [(ZMQInteractiveShell(), True), (None, False)])
def test_an_open_notebook_gets_a_bar(monkeypatch, shell, expected):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert shown() is expected


def test_unknown_setting(monkeypatch):
    monkeypatch.setenv(VARIABLE, "maybe")
    with pytest.raises(ValueError, match="KTLIB_PROGRESS must be 'on' or 'off'. Found 'maybe'"):
        shown()
