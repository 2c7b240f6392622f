"""Writes measured results, dated and with the hardware, into docs/benchmarks.md."""

import os
import platform
import re
import sys
from datetime import date
from pathlib import Path

import psutil

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def hardware() -> str:
    """Return the processor, the cores and the memory in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    model = models[0] if models else platform.processor()
    memory = psutil.virtual_memory().total / 1024**3
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"


def put(name: str, command: str, result: str) -> None:
    """Replace what stands between the marks of a name by a result and the command that made it."""
    text = PAGE.read_text(encoding="utf-8")
    block = f"<!-- begin {name} -->\n{date.today()}; {hardware()}; `{command}`\n\n{result}\n"
    marked = re.compile(rf"<!-- begin {name} -->\n.*?(?=<!-- end {name} -->)", re.DOTALL)
    if not marked.search(text):
        sys.exit(f"docs/benchmarks.md has no marks for {name}: add '<!-- begin {name} -->' and '<!-- end {name} -->'.")
    PAGE.write_text(marked.sub(lambda _: block, text), encoding="utf-8")
