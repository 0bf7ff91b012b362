"""One file over HTTP, with a progress bar, giving up quickly where nobody answers."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from data_prep.common.errors import SourceError

CONNECT_SECONDS = 4.0
SILENCE_SECONDS = 20.0
CHUNK = 1 << 16


def download(url: str, target: Path) -> None:
    """Fetch ``url`` into ``target``; on an error ``target`` may be incomplete.

    Raises:
        SourceError: nobody answers within seconds, the answer is an error, or it is cut short.
        OSError: ``target`` cannot be written.
    """
    _require_answer(url)
    request = urllib.request.Request(url, headers={"User-Agent": "ktlib"})  # noqa: S310
    try:
        # An opener of its own, which sees the proxy settings as they are now.
        response = urllib.request.build_opener().open(request, timeout=SILENCE_SECONDS)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise SourceError(str(error)) from error
    with response, target.open("wb") as file:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        with tqdm(
            desc=target.name, total=total, unit="B", unit_scale=True, leave=False,
        ) as bar:  # fmt: skip
            received = 0
            while chunk := _read(response):
                file.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
    if total is not None and received != total:
        raise SourceError(f"the transfer stopped after {received} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next bytes; a network error is told apart from one of the disk by its type."""
    try:
        return response.read(CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise SourceError(f"the transfer stopped: {error}") from error


def _require_answer(url: str) -> None:
    """Find out within seconds whether the host of ``url`` answers at all.

    Without a network, looking up a name can take a minute, and no time-out of the standard library
    covers that; so it is done in a thread that is waited for only so long.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise SourceError(f"{url} is not an address on the web")
    host = parts.hostname or ""
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return  # the proxy looks up the name and makes the connection
    port = parts.port or (443 if parts.scheme == "https" else 80)
    failures: list[OSError] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            failures.append(error)

    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(CONNECT_SECONDS)
    if attempt.is_alive():
        raise SourceError(f"{host} does not answer within {CONNECT_SECONDS:g} s")
    if failures:
        raise SourceError(f"{host} cannot be reached: {failures[0]}")
