"""A real browser: Chromium without a window, driven by selenium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

# Without the code for windows, Chromium needs a third less CPU.
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
    "disable-sync disable-dev-shm-usage no-proxy-server"
)
# A host that resolves to this machine but is not local for the browser: its pages have no clipboard without TLS.
ELSEWHERE = "rill.test"
# The name of another site, which its DNS resolves to the loopback.
REBOUND = "rebound.example"


@contextmanager
def start_chromium() -> Iterator[webdriver.Chrome]:
    """Run Chromium, whose console can be read, while the context lasts; skip the test if it is not installed."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver (Debian: chromium chromium-driver)")
    options = Options()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1, MAP {REBOUND} 127.0.0.1"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options, Service(DRIVER))
    try:
        yield running
    finally:
        with suppress(WebDriverException):  # It crashed.
            running.execute_cdp_cmd("Browser.close", {})  # The headless shell outlives `quit`.
        running.quit()
