"""A tokenizer of transformers told in the words of a GGUF file."""

import json
from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter, TokenType

from domain.errors import BackendUnavailable

# The classes of transformers carry no types that say anything.
Tokenizer = Any
# How byte-level tokenizers cut a text before they merge, and what llama.cpp calls it (src/llama-vocab.cpp).
_TAIL = r"?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]"
_CUTS = {_HEAD + _TAIL % "": "qwen2", _HEAD + _TAIL % "{1,3}": "llama-bpe"}


def write_vocabulary(writer: GGUFWriter, tokenizer: Tokenizer, rows: int) -> None:
    """Write tokens, their kinds and how to merge them.

    Args:
        writer: Of a file that has no header yet.
        tokenizer: A fast one, of byte-level BPE (GPT-2, Qwen, Llama 3) or of BPE with byte fallback (Llama 2, Gemma).
        rows: How many tokens the embedding knows; what the tokenizer lacks is padded.

    Raises:
        BackendUnavailable: The tokenizer is of another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or json.loads(backend.to_str())["model"]["type"] != "BPE":
        raise _refused("it is no BPE of the tokenizers library")
    keys = json.loads(backend.to_str())
    tokens, kinds = _tokens(keys, rows)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in keys["model"]["merges"]]
    if keys["model"].get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(_scores(tokens, keys["model"]["merges"]))
        writer.add_add_space_prefix(tokenizer.tokenize("a")[0].startswith("▁"))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_cut(keys.get("pre_tokenizer") or {}))
        writer.add_token_list(tokens)
        writer.add_token_merges(merges)
    writer.add_token_types([int(kind) for kind in kinds])
    _write_special(writer, tokenizer)


def _tokens(keys: Mapping[str, Any], rows: int) -> tuple[list[str], list[TokenType]]:
    """Return all tokens in the order of the embedding, and what each is."""
    tokens = [f"[PAD{place}]" for place in range(rows)]
    kinds = [TokenType.UNUSED] * rows
    unknown = keys["model"].get("unk_token")
    for piece, place in keys["model"]["vocab"].items():
        tokens[place] = piece
        is_byte = bool(keys["model"].get("byte_fallback")) and len(piece) == 6 and piece.startswith("<0x")
        kinds[place] = TokenType.BYTE if is_byte else TokenType.NORMAL
    for added in (added for added in keys["added_tokens"] if added["id"] < rows):
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if unknown in tokens:
        kinds[tokens.index(unknown)] = TokenType.UNKNOWN
    return tokens, kinds


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """Return what llama.cpp merges by: the earlier a merge was learnt, the higher its piece scores."""
    rank: dict[str, int] = {}
    for place, pair in enumerate(merges):
        rank.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), place)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _cut(before: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of the way in which a text is cut."""
    parts = before.get("pretokenizers", [before])
    patterns = [part["pattern"].get("Regex") for part in parts if part.get("type") == "Split"]
    if not patterns and any(part.get("type") == "ByteLevel" and part.get("use_regex", True) for part in parts):
        return "gpt-2"
    if len(patterns) == 1 and patterns[0] in _CUTS:
        return _CUTS[patterns[0]]
    raise _refused("it cuts texts in a way that llama.cpp has no name for")


def _write_special(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    begins = tokenizer.bos_token_id
    if begins is not None:
        writer.add_bos_token_id(begins)
    if tokenizer.eos_token_id is not None:
        writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(begins is not None and tokenizer("").input_ids[:1] == [begins])
    writer.add_add_eos_token(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _refused(why: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"This tokenizer cannot be written as GGUF: {why}.",
        "Quantise to nf4 or int8 instead, or convert with llama.cpp's convert_hf_to_gguf.py.",
    )
