"""The built book, opened in headless Chromium."""

import threading
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Error, sync_playwright

from workflow.browser import require

# Nothing but the pages: no updates, no look-ups of the browser's own.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MATH_IS_DONE = """async () => {
    if (window.MathJax && MathJax.startup) { await MathJax.startup.promise; }
    await document.fonts.ready;
}"""


@pytest.fixture(scope="session")
def chromium():
    """The browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=require(), args=FLAGS)
        yield browser
        browser.close()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def served(smoke_book):
    """Address of the book on a server of this machine, as it would be published."""
    handler = partial(Quiet, directory=smoke_book.html)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Tab:
    """A page, what it asked for and what it complained about."""

    def __init__(self, page):
        self.page = page
        self.complaints = []
        self.requests = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))

    def _on_console(self, message):
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    @property
    def outside(self):
        """Addresses asked for that are not files of the book."""
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]


@pytest.fixture
def tab(chromium, smoke_book):
    """Open a page, from its file if no address is given: ``with tab("intro") as opened``."""

    @contextmanager
    def opened(name, width=1440, theme="light", address=None):
        size = {"width": width, "height": 900}
        context = chromium.new_context(viewport=size, color_scheme=theme)
        tab = Tab(context.new_page())
        try:
            tab.page.goto(f"{address or smoke_book.html.as_uri()}/{name}.html")
            tab.page.evaluate(MATH_IS_DONE)
            yield tab
        finally:
            with suppress(Error):  # the browser itself has ended; the test tells why
                context.close()

    return opened
