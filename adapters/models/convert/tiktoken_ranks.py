"""A tiktoken vocabulary as a tokenizer of the `tokenizers` library: ranks of byte strings become merges."""

from base64 import b64decode
from binascii import Error as NotBase64
from itertools import pairwise
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from domain.errors import BadConfiguration


def tiktoken_tokenizer(path: Path, pattern: str) -> Tokenizer:
    """Read a file with a base64 string and a rank a line, such as `qwen.tiktoken`.

    Args:
        path: The file.
        pattern: The regular expression that cuts a text into words before their bytes are merged.

    Raises:
        BadConfiguration: The file is not there, or no such vocabulary.
    """
    try:
        lines = path.read_bytes().split(b"\n")
        ranks = {b64decode(token, validate=True): int(rank) for token, rank in (line.split() for line in lines if line)}
        if absent := [byte for byte in range(256) if bytes([byte]) not in ranks]:
            raise ValueError(f"it lacks the byte {absent[0]}")
        merges = [_parts(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    except (OSError, ValueError, NotBase64) as error:
        raise BadConfiguration(
            f"{path} is no tiktoken vocabulary: {error}.", "Download the tokenizer of the model again."
        ) from error
    alphabet = bytes_to_unicode()
    spelled = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    tokenizer = Tokenizer(
        models.BPE(
            {spelled[token]: rank for token, rank in ranks.items()},
            [(spelled[left], spelled[right]) for left, right in merges],
        )
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _parts(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens that the merges before its own leave of a token; a ValueError where they leave more.

    Only these two can ever meet: whatever splits the token otherwise would have been merged earlier.
    """
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        known = ((ranks.get(left + right, len(ranks)), place) for place, (left, right) in enumerate(pairwise(parts)))
        rank, place = min(known)
        if rank >= ranks[token]:
            raise ValueError(f"the token {token!r} cannot be made of earlier ones")
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]
