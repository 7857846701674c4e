"""Fixtures for every part: the original's numbers where they are at hand, and a small vocabulary made on the fly."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import HealthCheck, settings

from tests.tiny import kosmos_file

SHARED = Path(__file__).resolve().parents[2] / "shared"

# A busy machine is no counterexample. In continuous integration Hypothesis has chosen its own settings by now.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def draw_alike(name: str) -> None:
    """The same random numbers from here on, whatever was drawn before."""
    seed = crc32(name.encode(errors="surrogatepass"))
    random.seed(seed)
    for library, function in (("numpy", "random.seed"), ("torch", "manual_seed")):
        if library in sys.modules:
            attrgetter(function)(sys.modules[library])(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> None:
    """What a fixture makes does not depend on the test that is the first to want it."""
    draw_alike(f"{fixturedef.baseid}::{fixturedef.argname}")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """What a test draws does not depend on the tests before it."""
    draw_alike(pyfuncitem.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Tests that several processes share with --dist loadscope: see `shared_out`."""
    if config.getvalue("dist") != "loadscope":
        return None
    from tests.shared_out import Sharing

    return Sharing(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, the longest come first."""
    if hasattr(config, "workerinput"):
        from tests.shared_out import longest_first

        longest_first(items)


HANDLERS = {
    getattr(signal, name): signal.getsignal(getattr(signal, name))
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
}


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """The tests' own handlers come back after commands that ran in this process and took the signals over."""
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with the original's outputs; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("the original implementation's outputs are not beside this checkout (../shared)")
    return SHARED


@pytest.fixture(scope="session")
def tiny_tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(spm, dictionary) of the tiny vocabulary."""
    return kosmos_file.save_vocabulary(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A Tokenizer over `tiny_tokenizer_files`, 4 latents per picture."""
    return kosmos_file.tiny_tokenizer()


@pytest.fixture(scope="session")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `python -m dev.dry_run`: the whole road of docs/recipe.md walked at toy size."""
    folder = tmp_path_factory.mktemp("road") / "a run"
    command = [sys.executable, "-m", "dev.dry_run", "--folder", str(folder)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder
