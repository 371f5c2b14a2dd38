"""Checks that at least 95 % of each package's public symbols have a known type, as pyright counts.

    python scripts/type_completeness.py [PYRIGHT]

What Keras and its friends leave without a type is not counted, except as a base class.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

PACKAGES = ("keras_metamix", "metamix_tflite")
LEAST = 0.95
SHOWN = 40  # symbols, where there are fewer


def main(pyright: str = "pyright") -> int:
    """Prints the share of each package; returns 1 where one is below LEAST."""
    top = Path(__file__).parents[1]
    path = os.pathsep.join([str(top), str(top / "tflite")])  # an editable install hides them
    environment = os.environ | {"PYTHONPATH": path}
    failed = False
    for package in PACKAGES:
        command = [pyright, "--pythonpath", sys.executable, "--outputjson", "--ignoreexternal"]
        command += ["--verifytypes", package]
        run = subprocess.run(command, env=environment, cwd=top, capture_output=True, text=True)
        found = json.loads(run.stdout)["typeCompleteness"]
        share = found["completenessScore"]
        print(f"{package}: {share:.1%} of the public symbols have a known type")
        if share < LEAST:
            failed = True
            unknown = [s for s in found["symbols"] if s["isExported"] and not s["isTypeKnown"]]
            print(f"expected at least {LEAST:.0%}; without one, of {len(unknown)}:")
            print(*(f"  {symbol['name']}" for symbol in unknown[:SHOWN]), sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
