"""A folder of arm64 Debian and LiteRT's aarch64 wheels, for qemu's user-mode emulation.

Debian's packages come by apt with settings and folders of its own, and are unpacked, not installed:
this takes neither root nor a change of this machine. The wheels come by pip.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from metamix_tflite.devices import DeviceUnavailable

_STAMP = "keras-metamix.json"
_PACKAGES = ("python3", "libstdc++6")  # apt adds what these take
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
_HINT = "on Debian: apt-get install qemu-user-static"


def qemu() -> str:
    """The emulator's path.

    Raises:
      DeviceUnavailable: there is none.
    """
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        path = shutil.which(name)
        if path is not None:
            return path
    raise DeviceUnavailable(f"arm64: qemu-aarch64-static is not on the PATH: {_HINT}.")


def default_root() -> Path:
    """Where the folder is made, unless a flag names another."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "keras-metamix", "arm64")


def ready_root(root: Path) -> dict[str, str]:
    """Makes the folder where it is missing, or of another version of LiteRT than this machine's.

    Args:
      root: the folder, about 300 MB.

    Returns:
      What it holds: "python", its interpreter's path in the folder, and versions.

    Raises:
      DeviceUnavailable: a tool or an index is missing; says which.
      ValueError: `root` is a folder of something else.
    """
    version = importlib.metadata.version("ai-edge-litert")
    stamp = root / _STAMP
    if stamp.is_file():
        held = json.loads(stamp.read_text())
        if held["ai-edge-litert"] == version:
            return held
    elif root.exists() and any(root.iterdir()):
        raise ValueError(f"--arm64_root: expected an empty folder or one of ours, found {root}.")
    root.parent.mkdir(parents=True, exist_ok=True)
    print(f"making {root} (once): Debian's arm64 Python and the aarch64 wheels", file=sys.stderr)
    with _built_beside(root) as made:
        _unpack_debian(made)
        python = _python_of(made)
        _install_wheels(made / "wheels", python, version)
        held = {"python": f"usr/bin/{python}", "ai-edge-litert": version}
        (made / _STAMP).write_text(json.dumps(held) + "\n")
    return held


@contextlib.contextmanager
def _built_beside(root: Path) -> Iterator[Path]:
    """A new folder, which takes the place of `root` when the block ends well."""
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".arm64-") as scratch:
        made = Path(scratch, "root")
        made.mkdir()
        yield made
        if root.exists():
            root.rename(Path(scratch, "old"))
        made.rename(root)


def _unpack_debian(root: Path) -> None:
    """Downloads the packages and what they depend on, and unpacks them."""
    with tempfile.TemporaryDirectory() as scratch:
        state, cache = Path(scratch, "state"), Path(scratch, "cache")
        (state / "lists" / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        (state / "status").touch()
        settings = Path(scratch, "apt.conf")
        settings.write_text(
            'APT::Architecture "arm64";\nAPT::Architectures { "arm64"; };\n'
            'APT::Sandbox::User "";\nAPT::Install-Recommends "false";\n'
            f'Dir::State "{state}";\nDir::State::status "{state / "status"}";\n'
            f'Dir::Cache "{cache}";\n'
        )
        environment = {**os.environ, "APT_CONFIG": str(settings)}
        _call(["apt-get", "--quiet=2", "update"], environment)
        download = ["apt-get", "--quiet=2", "--yes", "--download-only", "install", *_PACKAGES]
        _call(download, environment)
        packages = sorted((cache / "archives").glob("*.deb"))
        if not packages:
            raise DeviceUnavailable("arm64: apt-get downloaded no package of Debian's arm64.")
        for package in packages:
            _call(["dpkg-deb", "--extract", str(package), str(root)], environment)


def _python_of(root: Path) -> str:
    """The name of the interpreter, "python3.11" say."""
    found = sorted(p.name for p in (root / "usr" / "bin").glob("python3.[0-9]*") if p.is_file())
    if not found:
        raise DeviceUnavailable("arm64: Debian's arm64 packages hold no python3.")
    return found[0]


def _install_wheels(folder: Path, python: str, version: str) -> None:
    """Unpacks LiteRT's wheel, and those that it takes, for the emulated interpreter."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"]
    command += ["--target", str(folder), "--only-binary=:all:", "--implementation=cp"]
    command += [f"--python-version={python.removeprefix('python')}"]
    command += [f"--platform={platform}" for platform in _PLATFORMS]
    _call([*command, f"ai-edge-litert=={version}", "numpy"], dict(os.environ))


def _call(command: Sequence[str], environment: dict[str, str]) -> None:
    """Runs a tool.

    Raises:
      DeviceUnavailable: it is missing or fails; names it and says what it said last.
    """
    try:
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace"
        )
    except FileNotFoundError as error:
        raise DeviceUnavailable(
            f"arm64: {command[0]} is not on the PATH; it is Debian's."
        ) from error
    if ended.returncode:
        said = (ended.stderr.strip() or ended.stdout.strip()).splitlines() or ["nothing"]
        name = " ".join(command[:3]) if command[0] == sys.executable else command[0]
        raise DeviceUnavailable(f"arm64: {name} fails: {said[-1]}")
