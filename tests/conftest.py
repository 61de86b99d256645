"""The fixtures: one real server for each module, and a fake upstream that every test scripts for itself."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from certificates import make_certificate
from server import Rill, StartRill, rill_env
from upstream import Upstream

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores it, and so would every program that a test starts in order to interrupt it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def module_upstream() -> Iterator[Upstream]:
    """The fake upstream of a whole module; a test takes `upstream`."""
    with Upstream() as running:
        yield running


@pytest.fixture
def upstream(module_upstream: Upstream) -> Iterator[Upstream]:
    """The fake upstream, without scripts and records; a fault in it fails the test."""
    module_upstream.clear()
    yield module_upstream
    faults = module_upstream.faults
    module_upstream.clear()
    assert faults == [], "\n".join(faults)


@pytest.fixture(scope="module")
def service(module_upstream: Upstream) -> Iterator[Rill]:
    """The real server, wired to the module's upstream."""
    with Rill(rill_env(module_upstream)) as running:
        yield running


@pytest.fixture
def start_rill(upstream: Upstream) -> Iterator[StartRill]:
    """Start further servers on the upstream: `start_rill(*arguments, bind=True, **env)`; None unsets."""
    with ExitStack() as running:

        def start(*arguments: str, bind: bool = True, **env: str | None) -> Rill:
            merged = {name: value for name, value in {**rill_env(upstream), **env}.items() if value is not None}
            return running.enter_context(Rill(merged, arguments, bind=bind))

        yield start


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a filesystem in memory of so many bytes; skip the test where that is not allowed."""
    places: list[Path] = []

    def mount(size: int) -> Path:
        place = tmp_path / f"mounted-{len(places)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("no filesystem may be mounted here")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file with a key and a certificate that it signed itself, for 127.0.0.1 and no other name."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1")
