"""What an emulated ARM CPU tells of itself in /proc and /sys.

LiteRT counts and names the CPUs by these files, and crashes without them. qemu shows the emulated
program the files of a folder in the place of the machine's.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

_ARMV8_0 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_ARMV8_2 = _ARMV8_0 + " atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp ssbs"


@dataclasses.dataclass(frozen=True)
class Cpu:
    """A CPU that qemu emulates.

    Attributes:
      model: qemu's name for it.
      part: Arm's number.
      features: as /proc/cpuinfo has them.
    """

    model: str
    part: str
    features: str


# XNNPACK has kernels of int8 for plain NEON, for its dot product (asimddp), and for its matrix
# product (i8mm). Without SVE and SME: under qemu 7.2's SME convolutions come out wrong.
CPUS = {
    "cortex-a53": Cpu("cortex-a53", "0xd03", _ARMV8_0),
    "neoverse-n1": Cpu("neoverse-n1", "0xd0c", _ARMV8_2),
    "armv8.6": Cpu("max,sve=off,sme=off", "0xd40", _ARMV8_2 + " i8mm bf16"),
}
_OWN = ("proc", "sys")


def show(root: Path, cpu: str, folder: Path) -> None:
    """Fills an empty folder with links to all that is in `root`, and with a CPU's files."""
    for entry in root.resolve().iterdir():
        if entry.name not in _OWN:
            (folder / entry.name).symlink_to(entry)
    lines = {
        "processor": "0",
        "BogoMIPS": "50.00",
        "Features": CPUS[cpu].features,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": "0x0",
        "CPU part": CPUS[cpu].part,
        "CPU revision": "4",
    }
    (folder / "proc").mkdir()
    text = "".join(f"{key}\t: {value}\n" for key, value in lines.items())
    (folder / "proc" / "cpuinfo").write_text(text + "\n")
    listed = folder / "sys" / "devices" / "system" / "cpu"
    listed.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (listed / name).write_text("0\n")
