r"""`--open`: a report in the browser, where there is one."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path


def opened(page: Path) -> bool:
    """Was the page handed to a browser? What goes wrong with one is no reason to fail: the page is on the disk.

    A browser inside the terminal (w3m, lynx) would wait for its user, so it is taken only where one sits there.
    """
    try:
        browser = webbrowser.get()
        waits = type(browser) is webbrowser.GenericBrowser and not os.environ.get("BROWSER")
        if waits and not (sys.stdin.isatty() and sys.stdout.isatty()):
            return False
        return bool(browser.open(page.absolute().as_uri()))
    except (OSError, ValueError, webbrowser.Error):
        return False
