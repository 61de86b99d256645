"""The Dockerfile, tested without building it: the files that it copies suffice to serve as user nobody with its CMD."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import Deployed
from gated import FIRST, SECOND, gated_answer
from server import ROOT, Rill
from upstream import Upstream

LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text("utf-8")).splitlines()
STEPS = [tuple(line.split(" ", 1)) for line in LINES if line and not line.startswith("#")]
IGNORED = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
API_KEY = "wonder-land"


def arguments_of(instruction: str) -> list[str]:
    """Return the arguments of each such instruction, in order."""
    return [arguments for name, arguments in STEPS if name == instruction]


def copied() -> dict[str, str]:
    """Return the destination of each path that is copied from the repository."""
    rows = [shlex.split(arguments) for arguments in arguments_of("COPY") if "--from" not in arguments]
    return {source: row[-1] for row in rows for source in row[:-1]}


def is_in_context(path: str) -> bool:
    """Return whether the build context contains a path: the last line of .dockerignore that matches it decides."""
    included = True
    for line in IGNORED:
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if line and not line.startswith("#") and re.fullmatch(f"{pattern}(/.*)?", path):
            included = line.startswith("!")
    return included


def test_the_base_image_has_the_python_version_of_the_platforms() -> None:
    version = (ROOT / ".python-version").read_text("utf-8").strip()
    images = [arguments.split(" ")[0] for arguments in arguments_of("FROM")]
    assert images == [f"python:{version}-slim"] * 2


def test_the_build_context_contains_exactly_what_is_copied() -> None:
    paths = [*ROOT.iterdir(), *(ROOT / "rill").rglob("*"), *(ROOT / "tests").glob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in paths}
    expected = {
        path
        for path in found
        if any(path == source or path.startswith(f"{source}/") for source in copied()) and "__pycache__" not in path
    }
    assert {path for path in found if is_in_context(path)} == expected
    assert {"app.py", "rill/page/index.html", "requirements.txt"} <= expected


def test_pip_installs_only_locked_packages() -> None:
    (install,) = [arguments for arguments in arguments_of("RUN") if "pip install" in arguments]
    assert {"--require-hashes", "requirements.txt"} <= set(install.split())


def test_docker_runs_gunicorn_without_a_shell() -> None:
    (command,) = arguments_of("CMD")
    assert json.loads(command)[0] == "gunicorn"


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """Yield a folder like the last build stage: /app as it is copied, and a /venv with this Python and its packages."""
    folder = Path(tempfile.mkdtemp(prefix="image-"))
    folder.chmod(0o755)
    (workdir,) = arguments_of("WORKDIR")
    app = folder / workdir.strip("/")
    app.mkdir()
    for source, destination in copied().items():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, app / destination, ignore=shutil.ignore_patterns("__pycache__"))
        elif destination == "./":
            shutil.copy(ROOT / source, app)
    venv.create(folder / "venv", symlinks=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "these.pth").write_text(sysconfig.get_path("purelib"))
    script = folder / "venv" / "bin" / "gunicorn"
    script.write_text(f"#!{folder}/venv/bin/python\nfrom gunicorn.app.wsgiapp import run\nrun()\n")
    script.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def environment(image: Path, upstream: Upstream) -> dict[str, str]:
    """Return the environment of the Dockerfile with a free port, and what `docker run -e` adds."""
    (row,) = [shlex.split(arguments) for arguments in arguments_of("ENV")]
    env = dict(assignment.split("=", 1) for assignment in row)
    env["PATH"] = env["PATH"].replace("/venv", f"{image}/venv").replace("$PATH", os.defpath)
    assert env["PORT"] == arguments_of("EXPOSE")[0]
    port = str(Rill({}).choose_port())
    key = {"ANTHROPIC_API_KEY": "sk-test-key", "ANTHROPIC_BASE_URL": upstream.url}
    return {**env, **key, "RILL_API_KEYS": f"alice={API_KEY}", "PORT": port}


def test_the_image_runs_as_user_nobody_is_healthy_and_completes_an_answer_before_it_stops(
    image: Path, upstream: Upstream
) -> None:
    upstream.script(*gated_answer())
    env = environment(image, upstream)
    health = json.loads(arguments_of("HEALTHCHECK")[0].removeprefix("CMD "))
    command = json.loads(arguments_of("CMD")[0])
    with Deployed(command, image / "app", env, int(env["PORT"]), as_nobody=True) as running:
        running.wait_until_healthy()
        assert os.getuid() or running.user == "nobody"
        assert subprocess.run(health, env=env, check=False).returncode == 0
        assert status_of(running, "/page/page.css") == 200
        with running.ask("GET", "/stream?q=hi", {"X-Api-Key": API_KEY}) as asked:
            asked.read_until(FIRST.encode())
            running.begin_to_stop()
            upstream.open("second")
            assert asked.read_rest() == SECOND.encode()
            assert asked.ended == "clean"
        assert running.exit_code() == 0, running.output()
        assert subprocess.run(health, env=env, capture_output=True, check=False).returncode == 1
        assert "Traceback" not in running.output()


def status_of(running: Deployed, path: str) -> int | None:
    """Return the status of a GET of the path."""
    with running.ask("GET", path) as asked:
        return asked.status
