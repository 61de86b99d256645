"""The fixtures: real servers that tests share, and a fake upstream that every test scripts for itself."""

import math
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import server
from certificates import make_certificate
from fork_server import close_fork_servers
from server import Rill, StartRill, rill_env, with_changes
from server_pool import ServerPool
from upstream import Upstream

if TYPE_CHECKING:
    from selenium import webdriver

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores SIGINT, and a program that a test starts and interrupts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that use a server."""
    if not {"share_rill", "start_rill"}.isdisjoint(getattr(item, "fixturenames", ())):
        item.add_marker("server")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of both paths with the relay and without it."""
    if metafunc.definition.get_closest_marker("both_paths") and not server.GENERAL_PATH:
        metafunc.parametrize("answer_path", ["relay", "general path"], indirect=True)


@pytest.fixture(autouse=True)
def answer_path(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make the servers of a test with the relay or without it; of each test, to be before the fixture of the server."""
    always = server.GENERAL_PATH
    server.GENERAL_PATH = always or getattr(request, "param", "") == "general path"
    yield
    server.GENERAL_PATH = always


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that wait first, in half of the processes, so that none remains for the end and the others compute.

    xdist gives each process a part of the list; a test of the soak or of timing may be deselected by then.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    half = math.ceil(processes / 2)
    waiting = [item for item in items if item.get_closest_marker("waits")]
    others = [item for item in items if not item.get_closest_marker("waits")]
    size = math.ceil(len(others) / processes)
    items[:] = [
        item
        for number in range(processes)
        for item in (*(waiting[number::half] if number < half else []), *others[number * size : (number + 1) * size])
    ]


@pytest.fixture(scope="session")
def shared_upstream() -> Iterator[Upstream]:
    """Yield the fake upstream of this process; tests use `upstream`."""
    with Upstream() as running:
        yield running


@pytest.fixture
def upstream(shared_upstream: Upstream) -> Iterator[Upstream]:
    """Yield the fake upstream, without scripts and records; a fault in it fails the test."""
    shared_upstream.clear()
    yield shared_upstream
    faults = shared_upstream.faults
    shared_upstream.clear()
    assert faults == [], "\n".join(faults)


@pytest.fixture(scope="session", autouse=True)
def forks() -> Iterator[None]:
    """End the processes that fork servers."""
    yield
    close_fork_servers()


@pytest.fixture(scope="session")
def servers(shared_upstream: Upstream) -> Iterator[ServerPool]:
    """Yield the servers that the tests of this process share."""
    with closing(ServerPool()) as pool:
        yield pool


@pytest.fixture(scope="module", autouse=True)
def outputs_without_secrets(servers: ServerPool) -> Iterator[None]:
    """Check after each module what the shared servers wrote."""
    yield
    servers.check_outputs()


@pytest.fixture(scope="session")
def share_rill(shared_upstream: Upstream, servers: ServerPool) -> StartRill:
    """Return a server that other tests use too: `share_rill(*arguments, app=..., **env)`; None unsets.

    It is for tests that neither stop nor signal it, and do not exhaust any of its limits permanently.
    """

    def share(*arguments: str, app: str = "wsgi:app", **env: str | None) -> Rill:
        return servers.get(with_changes(rill_env(shared_upstream), env), arguments, app)

    return share


@pytest.fixture
def service(share_rill: StartRill) -> Rill:
    """Return the real server with the default settings of the tests."""
    return share_rill()


@pytest.fixture
def start_rill(upstream: Upstream) -> Iterator[StartRill]:
    """Start a server for one test only: `start_rill(*arguments, bind=True, **env)`; None unsets."""
    with ExitStack() as running:

        def start(*arguments: str, bind: bool = True, **env: str | None) -> Rill:
            changed = with_changes(rill_env(upstream), env)
            return running.enter_context(Rill(changed, arguments, bind=bind))

        yield start


@pytest.fixture(scope="session")
def browser() -> "Iterator[webdriver.Chrome]":
    """Yield the Chromium of this process; a test ends on a blank page."""
    from chromium import start_chromium  # most tests need no browser

    with start_chromium() as running:
        yield running


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a filesystem in memory of so many bytes; skip the test if that is not permitted."""
    folders: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"mounted-{len(folders)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("mounting a filesystem is not permitted here")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one file with a key and a self-signed certificate for 127.0.0.1 only."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1")
