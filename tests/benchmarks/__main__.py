"""Runs the benchmarks: python -m tests.benchmarks [--write] [NAME ...]

Each runs in a process of its own and prints a Markdown table; --write puts it, dated and with the hardware, between the
marks of its name in docs/benchmarks.md. The tables are measurements of one machine and one day; no test needs them.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tests.page import put

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all without one")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/benchmarks.md")
    options = parser.parse_args()
    for name in options.names or NAMES:
        print(f"\n## {name}\n", flush=True)
        command = [sys.executable, "-m", f"tests.benchmarks.{name}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, flush=True)
        if done.returncode:
            sys.exit(f"The benchmark {name} failed with status {done.returncode}.")
        if options.write:
            put(name, f"python -m tests.benchmarks.{name}", done.stdout.strip())


if __name__ == "__main__":
    main()
