"""Runs mutated files through mt.verify, in a process of its own: a segfault ends no test run.

    python fuzz_verify.py FOLDER FIRST LAST

FOLDER holds .tflite files and bits.json, {"activation_bits": ..., "weight_bits": ...}. Mutation
number n follows from the seed n alone. Prints the number before it is tried, so that the last one
is known whatever happens, and at the end how many were refused.
"""

import json
import signal
import sys
import types
from pathlib import Path

import numpy as np

import metamix_tflite as mt

DEADLINE_S = 10
LONGEST = 300  # characters of a message
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def flip(content, rng, others):
    for place in rng.integers(0, len(content), rng.integers(1, 12)):
        content[place] ^= 1 << int(rng.integers(8))
    return content


def replace(content, rng, others):
    """Bytes by others of any value."""
    for place in rng.integers(8, len(content), rng.integers(1, 12)):
        content[place] = int(rng.integers(256))
    return content


def extreme(content, rng, others):
    """An offset, length, index or code by one at the end of its range."""
    for place in rng.integers(2, len(content) // 4, rng.integers(1, 4)):
        word = int(rng.choice(EXTREMES)).to_bytes(4, "little")
        content[4 * place : 4 * place + 4] = word
    return content


def truncate(content, rng, others):
    return content[: rng.integers(0, len(content))]


def splice(content, rng, others):
    """The head of one file, the tail of another."""
    other = others[rng.integers(len(others))]
    place = rng.integers(8, min(len(content), len(other)))
    return content[:place] + bytearray(other[place:])


def move(content, rng, others):
    """A piece of the file over another place of it."""
    size = int(rng.integers(4, 64))
    source, target = rng.integers(8, len(content) - size, 2)
    content[target : target + size] = content[source : source + size]
    return content


def shift(content, rng, others):
    """A few bytes more or fewer: all that lies behind is elsewhere."""
    place = rng.integers(8, len(content))
    if rng.integers(2):
        del content[place : place + rng.integers(1, 9)]
    else:
        content[place:place] = rng.bytes(rng.integers(1, 9))
    return content


MUTATIONS = (flip, replace, extreme, truncate, splice, move, shift)


def mutated(number, files):
    rng = np.random.default_rng(number)
    content = bytearray(files[number % len(files)])
    return bytes(MUTATIONS[number // len(files) % len(MUTATIONS)](content, rng, files))


def outcome(flat, bits):
    """ "passes" or "refused"; raises for anything but a clear refusal."""
    try:
        mt.verify(flat, bits)
    except mt.VerificationError as error:
        text = str(error)
        if not text or not text.isprintable() or len(text) > LONGEST:
            raise AssertionError(f"an unclear message: {text!r}") from error
        return "refused"
    return "passes"


def main(folder, first, last):
    files = [path.read_bytes() for path in sorted(folder.glob("*.tflite"))]
    bits = types.SimpleNamespace(**json.loads((folder / "bits.json").read_text()))
    counts = dict.fromkeys(("passes", "refused"), 0)
    for number in range(first, last):
        print(number, flush=True)
        signal.alarm(DEADLINE_S)  # its default action ends the process
        counts[outcome(mutated(number, files), bits if number % 2 else None)] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
