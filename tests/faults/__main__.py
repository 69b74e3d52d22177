"""`python -m tests.faults`: tries at large what the tests here try a few times, and prints what came of it."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import failing_writes, foreign_files, kills


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options, one of which says what is tried."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.partition(": ")[2])
    parser.add_argument("--seed", type=int, default=0)
    tried = parser.add_mutually_exclusive_group(required=True)
    tried.add_argument("--kills", type=int, metavar="N", help="kill runs N times by SIGKILL")
    tried.add_argument("--signals", type=int, metavar="N", help="send runs N times SIGTERM or SIGINT")
    tried.add_argument("--failing-writes", type=int, metavar="N", help="make what N runs write fail")
    tried.add_argument("--foreign-files", type=int, metavar="N", help="put files of others into N directories")
    return parser.parse_args(arguments)


def main() -> None:
    """The command line."""
    options = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        if options.failing_writes:
            failing_writes.main(options.failing_writes, directory)
        elif options.foreign_files:
            foreign_files.main(options.foreign_files, directory, options.seed)
        elif options.signals:
            print(kills.table(kills.kill_and_resume(options.signals, directory, options.seed, kills.ASKED)))
        else:
            print(kills.table(kills.kill_and_resume(options.kills, directory, options.seed)))


if __name__ == "__main__":
    main()
