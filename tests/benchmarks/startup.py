"""How long she takes to wake up: python -m tests.benchmarks.startup (prints a Markdown table).

Every command runs in a fresh process, in turn with the bare interpreter, so that all see the same machine.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

ROUNDS = 5
ZISHU = [sys.executable, "-m", "entrypoints"]
COMMANDS = {
    "bare interpreter (`python -c pass`)": [sys.executable, "-c", "pass"],
    "`zishu --help`": [*ZISHU, "--help"],
    "`zishu characters --json`": [*ZISHU, "characters", "--json"],
    "`zishu cli --once 你好 --backend scripted`": [*ZISHU, "cli", "--once", "你好", "--backend", "scripted"],
    "`zishu cli --once 你好`, the starter": [*ZISHU, "cli", "--once", "你好"],
}


def seconds(command: list[str], environment: dict[str, str]) -> float:
    began = perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return perf_counter() - began


def first_token_ms(environment: dict[str, str]) -> float:
    done = subprocess.run(
        [*ZISHU, "cli", "--once", "你好", "--json"], env=environment, check=True, capture_output=True, text=True
    )
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return events[-1]["data"]["timings"]["first_token_ms"]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="zishu-bench-") as folder:
        # an own data folder, the user's cache: weights and vectors are there after the first start
        environment = {**os.environ, "ZISHU_DATA_DIR": str(Path(folder) / "data")}
        times: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for command in COMMANDS.values():
            seconds(command, environment)  # the first start sets the database up; it is reported by the quickstart
        for _ in range(ROUNDS):
            for name, command in COMMANDS.items():
                times[name].append(seconds(command, environment))
        first = statistics.median(first_token_ms(environment) for _ in range(ROUNDS))
        subprocess.run([*ZISHU, "db", "stop"], env=environment, check=False, capture_output=True)
    print(f"| start-up, median of {ROUNDS} (warm disk, database stopped in between) | s |\n|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.2f} |")
    print(f"| of the last: first token after her waking | {first / 1000:.2f} |")


if __name__ == "__main__":
    main()
