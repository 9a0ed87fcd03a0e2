"""Open the pages that the program writes in a browser."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def opened(chromium, path: Path, width: int = 1280) -> Iterator[Any]:
    """Open a page, and check at the end that it is clean.

    A clean page loads no other file, writes nothing to the console, and runs no code from a file name: the
    tests use names that set `window.broken`.
    """
    tab = chromium.new_page(viewport={"width": width, "height": 900})
    tab.set_default_timeout(5000)
    faults = []
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("request", lambda request: faults.append(request.url) if request.url[:5] not in ("file:", "data:") else None)
    tab.goto(path.as_uri())
    yield tab
    assert not faults
    assert tab.evaluate("window.broken") is None
    tab.close()
