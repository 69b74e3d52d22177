"""`python -m benchmarks`: the speed of each implementation, measured in turns."""

from benchmarks.speed.compare import main, parse

__all__ = ["main", "parse"]

if __name__ == "__main__":
    main()
