"""The fixtures of what is deployed: a server behind one proxy, and a browser."""

from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from server import Rill, StartRill
from test_chromium import CHROMIUM, DRIVER, FLAGS


@pytest.fixture
def service(share_rill: StartRill) -> Rill:
    """The real server, as it should be set behind one proxy."""
    return share_rill(RILL_TRUSTED_PROXIES="1")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """Chromium, without a window."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver (Debian: chromium chromium-driver)")
    options = Options()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(f"--{flag}")
    running = webdriver.Chrome(options, Service(DRIVER))
    try:
        yield running
    finally:
        running.quit()
