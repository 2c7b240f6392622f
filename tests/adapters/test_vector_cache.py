"""Vectors on disk: nothing is embedded twice, and a bad disk costs time and nothing else."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.embedder import hashed
from adapters.models.vectors import CachedEmbedder
from domain.ports import Embedder

TEXTS = [f"第{number}句话" for number in range(40)]
# Another process that shares the file: it embeds texts of its own, forty at a time, until it is told to end.
NEIGHBOUR = """
import asyncio, sys
from pathlib import Path
from adapters.embedder import hashed
from adapters.models.vectors import CachedEmbedder
async def main(path, name, blocks):
    cached = CachedEmbedder(hashed.build(hashed.Config()), Path(path))
    for block in range(int(blocks)):
        await cached.embed_passages([f"{name} {block} {number}" for number in range(40)])
        print(block, flush=True)
asyncio.run(main(*sys.argv[1:]))
"""


class Counting:
    """The hashed embedder, and how many passages it was asked for."""

    def __init__(self, identity: str = "counting-1") -> None:
        self._inner: Embedder = hashed.build(hashed.Config())
        self.identity = identity
        self.passages = 0

    async def embed_queries(self, texts: Sequence[str]) -> list[Sequence[float]]:
        return await self._inner.embed_queries(texts)

    async def embed_passages(self, texts: Sequence[str]) -> list[Sequence[float]]:
        self.passages += len(texts)
        return await self._inner.embed_passages(texts)


def neighbour(path: Path, name: str, blocks: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", NEIGHBOUR, str(path), name, str(blocks)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "缓 存" / "vectors.sqlite"


async def test_a_second_start_embeds_nothing(path: Path) -> None:
    first, second = Counting(), Counting()
    embedded = await CachedEmbedder(first, path).embed_passages(TEXTS)
    assert await CachedEmbedder(second, path).embed_passages(TEXTS) == embedded
    assert (first.passages, second.passages) == (40, 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.sampled_from(["", "早", "安\0", "\ud800", "早安" * 300]) | st.text(max_size=3), max_size=6))
def test_what_is_kept_is_what_was_embedded(path: Path, texts: list[str]) -> None:
    async def both() -> None:
        plain = await Counting().embed_passages(texts)
        assert await CachedEmbedder(Counting(), path).embed_passages(texts) == plain

    asyncio.run(both())


async def test_a_text_that_occurs_twice_is_embedded_once(path: Path) -> None:
    embedder = Counting()
    one, other, again = await CachedEmbedder(embedder, path).embed_passages(["早", "晚", "早"])
    assert one == again != other
    assert embedder.passages == 2


async def test_only_what_is_new_is_embedded(path: Path) -> None:
    embedder = Counting()
    cached = CachedEmbedder(embedder, path)
    await cached.embed_passages(TEXTS[:30])
    await cached.embed_passages(TEXTS)
    assert embedder.passages == 40


async def test_vectors_of_another_embedder_are_of_no_use(path: Path) -> None:
    await CachedEmbedder(Counting("one-1"), path).embed_passages(TEXTS)
    other = Counting("one-2")
    await CachedEmbedder(other, path).embed_passages(TEXTS)
    assert other.passages == 40


async def test_queries_leave_nothing_on_disk(path: Path) -> None:
    cached = CachedEmbedder(Counting(), path)
    assert await cached.embed_queries(["我的秘密"]) == await Counting().embed_queries(["我的秘密"])
    assert not path.exists()


@pytest.mark.parametrize("spoilt", ["no database", "truncated", "overwritten pages", "one changed bit", "empty"])
async def test_a_damaged_file_is_made_anew(path: Path, spoilt: str) -> None:
    embedded = await CachedEmbedder(Counting(), path).embed_passages(TEXTS)
    content = bytearray(path.read_bytes())
    if spoilt == "no database":
        content[:16] = b"not what it says"
    elif spoilt == "truncated":
        del content[len(content) // 2 :]
    elif spoilt == "overwritten pages":
        content[4096 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4096)
    elif spoilt == "one changed bit":
        content[content.index(embedded[7].tobytes()[:64]) + 2] ^= 1  # type: ignore[attr-defined]
    else:
        content.clear()
    path.write_bytes(content)

    assert await CachedEmbedder(Counting(), path).embed_passages(TEXTS) == embedded
    await CachedEmbedder(Counting(), path).embed_passages(TEXTS)
    last = Counting()
    assert await CachedEmbedder(last, path).embed_passages(TEXTS) == embedded
    assert last.passages == 0


@pytest.mark.parametrize("place", ["/proc/zishu/vectors.sqlite", "file/vectors.sqlite", "folder"])
async def test_where_nothing_can_be_kept_it_only_takes_longer(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    embedder = Counting()
    cached = CachedEmbedder(embedder, tmp_path / place)
    assert await cached.embed_passages(TEXTS) == await cached.embed_passages(TEXTS)
    assert embedder.passages == 80


async def test_several_programs_keep_their_vectors_in_one_file(path: Path) -> None:
    programs = [neighbour(path, name, 5) for name in ("甲", "乙", "丙")]
    for program in programs:
        program.communicate(timeout=60)
    assert [program.returncode for program in programs] == [0, 0, 0]
    embedder = Counting("hashed-1")
    texts = [f"{name} {block} {number}" for name in "甲乙丙" for block in range(5) for number in range(40)]
    await CachedEmbedder(embedder, path).embed_passages(texts)
    assert embedder.passages == 0


@pytest.mark.parametrize("blocks", [1, 3, 6])
async def test_killing_a_writer_leaves_a_sound_file(path: Path, blocks: int) -> None:
    program = neighbour(path, "甲", 1000)
    assert program.stdout
    for _ in range(blocks):
        program.stdout.readline()
    program.send_signal(signal.SIGKILL)
    program.communicate(timeout=60)
    embedder = Counting("hashed-1")
    await CachedEmbedder(embedder, path).embed_passages(
        [f"甲 {block} {number}" for block in range(blocks) for number in range(40)]
    )
    assert embedder.passages == 0
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
