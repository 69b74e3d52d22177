"""`python -m benchmarks.speed.worker MODULE.FUNCTION NAME`: times an implementation, one round for every line it reads.

The first answer, an empty object, says that all is compiled and warm. An answer is a line of JSON: seconds per unit of
work, by row of the table.
"""

import importlib
import json
import sys
import time

from benchmarks.speed.suite import Work

ROUND_SECONDS = 1.0


def seconds(work: Work, repeats: int) -> float:
    """Wall time of `repeats` runs."""
    started = time.perf_counter()
    for _ in range(repeats):
        result = work.run()
    work.wait(result)
    return time.perf_counter() - started


def main() -> None:
    """Answer until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not mix with the answers
    module, function = sys.argv[1].split(".")
    works: dict[str, Work] = getattr(importlib.import_module(f"benchmarks.speed.{module}"), function)(sys.argv[2])
    for work in works.values():
        seconds(work, 1)
    repeats = {row: max(1, round(ROUND_SECONDS / seconds(work, 1))) for row, work in works.items()}
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        answer = {row: seconds(work, repeats[row]) / repeats[row] / work.amount for row, work in works.items()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
