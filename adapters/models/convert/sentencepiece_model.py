"""A SentencePiece model as a tokenizer of the `tokenizers` library, which needs no code of the model's makers."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from domain.errors import BackendUnavailable, BadConfiguration

# Kinds of a model and of a piece. Source: sentencepiece_model.proto in github.com/google/sentencepiece.
_UNIGRAM, _BPE = 1, 2
_CONTROL, _USER_DEFINED = 3, 4


@dataclass(frozen=True, slots=True)
class SentencePieces:
    """A SentencePiece model: its tokenizer and the spelling of each of its tokens, by number."""

    tokenizer: Tokenizer
    pieces: tuple[str, ...]


def sentence_pieces(path: Path) -> SentencePieces:
    """Read a `tokenizer.model`.

    Raises:
        BadConfiguration: It is not there, or no SentencePiece model of the kinds BPE and unigram.
        BackendUnavailable: A library is missing.
    """
    try:
        schema = import_module("sentencepiece.sentencepiece_model_pb2")
        damage: type[Exception] = import_module("google.protobuf.message").DecodeError
    except ImportError as error:
        raise BackendUnavailable(
            f"Reading {path.name} needs '{error.name}', which is not installed.",
            "Run: pip install sentencepiece protobuf",
        ) from error
    proto = schema.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except (OSError, damage) as error:
        raise _unreadable(path, str(error)) from error
    if not proto.pieces or proto.trainer_spec.model_type not in (_UNIGRAM, _BPE):
        raise _unreadable(path, "it has no pieces, or is of an unknown kind")
    return SentencePieces(_tokenizer(proto), tuple(piece.piece for piece in proto.pieces))


def _unreadable(path: Path, what: str) -> BadConfiguration:
    return BadConfiguration(
        f"{path} is no SentencePiece model: {what}.",
        "Download the tokenizer again, and check that the model is the one that its folder says.",
    )


def _tokenizer(proto: Any) -> Tokenizer:  # noqa: ANN401  the class of a protobuf
    tokenizer = Tokenizer(_model(proto))
    tokenizer.normalizer = _normalizer(proto.normalizer_spec)
    tokenizer.decoder = _decoder(proto)
    tokenizer.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL)
            for piece in proto.pieces
            if piece.type in (_CONTROL, _USER_DEFINED)
        ]
    )
    return tokenizer


def _model(proto: Any) -> models.Model:  # noqa: ANN401
    trained, scores = proto.trainer_spec, [(piece.piece, piece.score) for piece in proto.pieces]
    if trained.model_type == _UNIGRAM:
        return models.Unigram(scores, unk_id=trained.unk_id, byte_fallback=trained.byte_fallback)
    numbers = {piece: number for number, (piece, _) in enumerate(scores)}
    return models.BPE(
        numbers,
        _merges(proto, numbers),
        unk_token=trained.unk_piece,
        fuse_unk=True,
        byte_fallback=trained.byte_fallback,
    )


def _merges(proto: Any, numbers: dict[str, int]) -> list[tuple[str, str]]:  # noqa: ANN401
    """Return every pair of pieces that makes a piece, in the order in which SentencePiece prefers them: by score."""
    ranked = sorted((piece for piece in proto.pieces if piece.type == 1), key=lambda piece: -piece.score)
    return [
        (piece.piece[:cut], piece.piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece.piece))
        if piece.piece[:cut] in numbers and piece.piece[cut:] in numbers
    ]


def _normalizer(spec: Any) -> normalizers.Normalizer:  # noqa: ANN401
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def _decoder(proto: Any) -> decoders.Decoder:  # noqa: ANN401
    steps: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
