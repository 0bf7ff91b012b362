"""Giving up quickly, and telling why."""

import socket
import threading

import pytest

from data_prep.common import download as module
from data_prep.common.download import download
from data_prep.common.errors import SourceError


def test_a_file_arrives_whole(web, tmp_path):
    web.files["/a"] = bytes(range(256)) * 1000
    download(f"{web.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == web.files["/a"]


def test_a_host_that_never_answers_costs_only_the_time_allowed(tmp_path, monkeypatch):
    release = threading.Event()

    def never(*_, **__):
        release.wait(60)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", never)
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.05)
    with pytest.raises(SourceError, match=r"host\.invalid does not answer within 0\.05 s"):
        download("http://host.invalid/a", tmp_path / "a")
    release.set()


def test_a_transfer_that_falls_silent_is_given_up(web, tmp_path, monkeypatch):
    web.files["/a"] = bytes(1000)
    web.held.add("/a")
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.05)
    with pytest.raises(SourceError, match="the transfer stopped: timed out"):
        download(f"{web.url}/a", tmp_path / "a")


def test_a_proxy_is_left_to_look_up_the_name(web, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", web.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    web.files["http://host.invalid/a"] = b"through the proxy"
    download("http://host.invalid/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"through the proxy"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a", "nonsense"])
def test_only_web_addresses_are_opened(url, tmp_path):
    with pytest.raises(SourceError, match="is not an address on the web"):
        download(url, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
