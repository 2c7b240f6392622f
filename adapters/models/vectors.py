"""Vectors kept on disk, so that a second start embeds nothing."""

import asyncio
import sqlite3
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from zlib import crc32

from domain.ports import Embedder

# SQLite allows 999 parameters in one statement where it is old.
_BLOCK = 500
# The file is no database, or a damaged one: then it is made anew.
_USELESS = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_TABLE = """CREATE TABLE IF NOT EXISTS vectors (
    identity TEXT NOT NULL, digest BLOB NOT NULL, vector BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (identity, digest)
)"""
_SELECT = "SELECT digest, CAST(vector AS BLOB), checksum FROM vectors WHERE identity = ? AND digest IN "


class CachedEmbedder:
    """An `Embedder` that asks another one only for passages it has never embedded; queries are not kept.

    The file is a cache: several programs may share it, and where it cannot be read or written it is done without.

    Args:
        embedder: Who embeds what is not known yet.
        path: The SQLite file.
    """

    def __init__(self, embedder: Embedder, path: Path) -> None:
        self._embedder = embedder
        self._path = path

    @property
    def identity(self) -> str:
        return self._embedder.identity

    async def embed_queries(self, texts: Sequence[str]) -> list[Sequence[float]]:
        return await self._embedder.embed_queries(texts)

    async def embed_passages(self, texts: Sequence[str]) -> list[Sequence[float]]:
        digests = [sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        known = await asyncio.to_thread(self._read, set(digests))
        missing = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in known}
        if missing:
            vectors = await self._embedder.embed_passages(list(missing.values()))
            added = dict(zip(missing, (array("f", vector) for vector in vectors), strict=True))
            await asyncio.to_thread(self._write, added)
            known.update(added)
        return [known[digest] for digest in digests]

    def _read(self, digests: Iterable[bytes]) -> "dict[bytes, array[float]]":
        """Return the vectors that are on disk; none where the file cannot be read."""
        wanted = list(digests)
        try:
            with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=rw", uri=True)) as database:
                rows: list[tuple[bytes, bytes, int]] = []
                for start in range(0, len(wanted), _BLOCK):
                    block = wanted[start : start + _BLOCK]
                    query = _SELECT + f"({','.join('?' * len(block))})"
                    rows += database.execute(query, (self.identity, *block))
            # SQLite notices a damaged page, not a damaged value
            return {digest: array("f", vector) for digest, vector, checksum in rows if crc32(vector) == checksum}
        except sqlite3.DatabaseError as error:
            self._start_over_if_useless(error)
            return {}

    def _write(self, vectors: "Mapping[bytes, array[float]]") -> None:
        """Keep vectors in one transaction; where the disk refuses, do nothing."""
        blobs = {digest: vector.tobytes() for digest, vector in vectors.items()}
        rows = [(self.identity, digest, blob, crc32(blob)) for digest, blob in blobs.items()]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path)) as database, database:
                database.execute(_TABLE)
                database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)
        except sqlite3.DatabaseError as error:
            self._start_over_if_useless(error)
        except OSError:
            return

    def _start_over_if_useless(self, error: sqlite3.DatabaseError) -> None:
        """Remove a file that SQLite cannot use, together with its journal, which would damage the next one."""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _USELESS:  # the higher bits say in which part
            return
        for file in (self._path, self._path.with_name(f"{self._path.name}-journal")):
            try:
                file.unlink(missing_ok=True)
            except OSError:
                return
