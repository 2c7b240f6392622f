"""Runs all tests with their full counts and dates the result in docs/benchmarks.md: make proof [PYTEST_ARGS=...]"""

import os
import subprocess
import sys

from tests.page import put


def main() -> None:
    command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
    program = subprocess.Popen(command, env={**os.environ, "ZISHU_PROOF": "1"}, stdout=subprocess.PIPE, text=True)
    last = ""
    assert program.stdout
    for line in program.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    if program.wait():
        sys.exit(program.returncode)
    chosen = f" PYTEST_ARGS='{' '.join(sys.argv[1:])}'" if sys.argv[1:] else ""
    put("proof", f"make proof{chosen}", last.strip("= "))


if __name__ == "__main__":
    main()
