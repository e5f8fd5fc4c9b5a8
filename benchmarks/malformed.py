"""Malformed files in large numbers: what becomes of each, and how long the longest takes.

    python benchmarks/malformed.py [--files 10000] [--seed 0]

Equal shares of patches, ledgers, adapters, checkpoints and files of scores, each made wrong as in
`tests/hostile.py`. Any end but success or a `RetconError`, a file that takes over ten seconds, and
any code that runs, end this script with an error and the seed that shows it.
"""

import argparse
import faulthandler
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch

from hostile import KINDS, attempt, files, make_good, spoilt

_SECONDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outline = make_good(folder)
        os.chdir(folder)
        for kind in KINDS:
            refused, longest = 0, 0.0
            for number in range(chosen.files // len(KINDS)):
                seed = f"{chosen.seed}:{kind}:{number}"
                chance = random.Random(seed)
                file = chance.choice(files(kind, folder))
                whole = file.read_bytes()
                file.write_bytes(spoilt(whole, chance))
                faulthandler.dump_traceback_later(_SECONDS, exit=True)
                started = time.perf_counter()
                try:
                    said = attempt(kind, folder, outline)
                except BaseException:
                    print(f"seed {seed!r}, file {file.name}")
                    raise
                longest = max(longest, time.perf_counter() - started)
                faulthandler.cancel_dump_traceback_later()
                file.write_bytes(whole)
                refused += said is not None
                assert not (folder / "executed").exists(), seed
            total = chosen.files // len(KINDS)
            print(
                f"{kind:11} {total} files: {refused} refused with one error each, "
                f"{total - refused} taken for good; longest {1000 * longest:.0f} ms"
            )


main()
