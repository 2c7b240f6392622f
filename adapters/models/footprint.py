"""How much memory a model takes, by part, computed before anything is fetched."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adapters.models.profiles import Profile

# Bytes that one weight of a linear layer takes, scales included. Sources: NF4 with double quantisation: 4 bits, 8 for
# each block of 64 and 32 for each 256 blocks (Dettmers 2023, arXiv:2305.14314, section 3). int8: a byte, and a scale a
# row, which is counted as nothing. GPTQ and AWQ: 4 bits, and a scale of 16 and a zero of 4 for each 128. GGUF: Q4_K_M.
LINEAR_BYTES: Mapping[str, float] = MappingProxyType(
    {
        "fp32": 4,
        "bf16": 2,
        "int8": 1,
        "int8_weight_only": 1,
        "int8_dynamic": 1,
        "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),
        "gptq": 0.5 + 2.5 / 128,
        "awq": 0.5 + 2.5 / 128,
        "gguf": 0.6,
    }
)
# Tokens that are read at once, as the engine does.
CHUNK = 256
# Rank of the adapters that our training makes.
RANK = 16
# What Python, torch and transformers take before any weight is there: 442 MB resident after a tiny model spoke (Linux,
# CPU build of torch 2.13), and room for bitsandbytes and peft. A CUDA context takes its share of the card too; how much
# was not measured here.
RUNTIME_BYTES = 600_000_000


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of memory, by part."""

    weights: int
    cache: int
    adapters: int
    activations: int
    runtime: int

    @property
    def total(self) -> int:
        """All parts together."""
        return self.weights + self.cache + self.adapters + self.activations + self.runtime


def footprint(
    profile: Profile, precision: str, context_tokens: int, conversations: int = 1, adapters: int = 0
) -> Footprint:
    """Return what a model takes while it talks.

    With V rows of vocabulary, width d, L layers, feed-forward width f, h heads and k heads of keys and values of width
    w, T tokens of context, B conversations, A adapters of rank r, b bytes a number (4 in fp32, else 2) and q bytes a
    quantised weight (`LINEAR_BYTES`):

    - weights = q (P - E) + b E, where P are all parameters and E = V d (twice, unless tied) those of embedding and
      output layer, which no precision but `gguf` touches;
    - cache = 2 L k w T B b: a key and a value for each token, layer and head (Shazeer 2019, arXiv:1911.02150, for
      fewer heads of keys than of queries);
    - adapters = A L r b times the sum of (in + out) over the seven linear layers of a block (Hu 2021,
      arXiv:2106.09685);
    - activations: the widest moment of a block while a chunk of C tokens is read, 3 C b (d + f) with a fused
      attention, plus the logits in fp32, 4 V B, plus one linear layer that is unpacked to compute with, b d f, where
      weights are quantised. An upper estimate; allocators keep more.

    Args:
        profile: The model.
        precision: A key of `LINEAR_BYTES`.
        context_tokens: T, for each conversation.
        conversations: B.
        adapters: A.

    Raises:
        KeyError: There is no such precision.
    """
    number = 4 if precision == "fp32" else 2
    packed = LINEAR_BYTES[precision]
    embeddings = profile.vocabulary * profile.hidden * (1 if profile.tied else 2)
    kept = packed if precision == "gguf" else number
    moment = CHUNK * number * 3 * (profile.hidden + profile.intermediate)
    unpacked = number * profile.hidden * profile.intermediate if packed < number else 0
    return Footprint(
        weights=round(packed * (profile.parameters - embeddings) + kept * embeddings),
        cache=cache_bytes(profile, precision, context_tokens * conversations),
        adapters=adapters * adapter_parameters(profile) * number,
        activations=moment + 4 * profile.vocabulary * conversations + unpacked,
        runtime=RUNTIME_BYTES,
    )


def cache_bytes(profile: Profile, precision: str, tokens: int) -> int:
    """Return the bytes of the keys and values of some tokens, in fp32 or 16 bits."""
    return 2 * profile.layers * profile.kv_heads * profile.head_dim * tokens * (4 if precision == "fp32" else 2)


def adapter_parameters(profile: Profile, rank: int = RANK) -> int:
    """Return the size of a LoRA adapter on all seven linear layers of each block."""
    d, f = profile.hidden, profile.intermediate
    queries, keys = profile.heads * profile.head_dim, profile.kv_heads * profile.head_dim
    attention = (d + queries) + 2 * (d + keys) + (queries + d)
    return profile.layers * rank * (attention + 3 * (d + f))
