"""Ridge regression onto the experts, from sums that simply add up: an expert plugs in without the others' examples."""

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, sqrt
from operator import mul
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.expert_scorer import readable
from domain.errors import BadConfiguration

# Places that n-grams are hashed into, beside the embedder's dimensions; twice as many were no better.
BUCKETS = 512
# Strength of the Gaussian prior on the weights of vector and n-grams, in units of the mean variance of a text; chosen
# by leave-one-out over the lessons, and flat around the optimum.
PENALTY = (2.0, 6.0)
_START, _END = "\x02", "\x03"

Array = NDArray[np.float64]


def grams(text: str) -> dict[int, float]:
    """Return the distinct 1- to 3-grams of a text as a sparse vector: place and value, about 1 in length.

    A bit of each hash is the sign, so that collisions cancel out on average (Weinberger et al. 2009, arXiv:0902.2206).
    """
    marked = _START + readable(text) + _END
    longer = (marked[at : at + size] for size in (2, 3) for at in range(len(marked) - size + 1))
    found = {*marked[1:-1], *longer}
    weight, counted = 1 / sqrt(len(found)), dict[int, float]()
    for gram in sorted(found):
        digest = crc32(gram.encode("utf-8", "replace"))
        counted[digest % BUCKETS] = counted.get(digest % BUCKETS, 0.0) + (weight if digest >> 31 else -weight)
    return counted


def features(vectors: Sequence[Sequence[float]], texts: Sequence[str]) -> Array:
    """Return one row for each text, [text, dimension + BUCKETS]: its vector, then its n-grams."""
    rows = np.zeros((len(texts), len(vectors[0]) + BUCKETS))
    for row, vector, text in zip(rows, vectors, texts, strict=True):
        row[: len(vector)] = vector
        for place, value in grams(text).items():
            row[len(vector) + place] = value
    return rows


@dataclass(frozen=True, slots=True)
class Statistics:
    """All that the regression needs to know of a set of texts.

    Attributes:
        count: How many there are.
        total: Sum of their rows, [feature].
        scatter: Sum of the outer products of their rows, [feature, feature].
    """

    count: int
    total: Array
    scatter: Array

    @classmethod
    def of(cls, rows: Array) -> "Statistics":
        """Return the statistics of rows as `features` gives them."""
        return cls(len(rows), rows.sum(axis=0), rows.T @ rows)

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(self.count + other.count, self.total + other.total, self.scatter + other.scatter)


class Shipped(BaseModel):
    """The file of statistics that an expert may bring instead of examples; no text can be read out of it.

    Attributes:
        recipe: What the features were made with; other statistics cannot be added.
        count: Number of texts.
        total: Sum of the rows as base64 of little-endian float32.
        root: A triangular matrix R with Rᵀ R = scatter, in the same form, row by row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str
    count: int
    total: str
    root: str

    @classmethod
    def of(cls, rows: Array, recipe: str) -> "Shipped":
        """Return what an expert with such rows would bring."""
        root = np.asarray(np.linalg.qr(rows, mode="r"))
        return cls(recipe=recipe, count=len(rows), total=_packed(rows.sum(axis=0)), root=_packed(root))

    def statistics(self, width: int) -> Statistics:
        """Return the statistics; `width` is the number of features."""
        root = _unpacked(self.root).reshape(-1, width)
        return Statistics(self.count, _unpacked(self.total).reshape(width), root.T @ root)


def read_shipped(path: Path, recipe: str, width: int) -> Statistics:
    """Return the statistics of a file.

    Raises:
        BadConfiguration: It cannot be read, or was made with another embedder.
    """
    try:
        shipped = Shipped.model_validate_json(path.read_bytes())
        if shipped.recipe != recipe:
            raise ValueError("it belongs to another embedder or version")
        return shipped.statistics(width)
    except (OSError, ValueError, ValidationError) as error:
        raise BadConfiguration(
            f"The statistics {path} are of no use: {error}.", "Give the expert a routing.toml with examples instead."
        ) from error


def _packed(numbers: Array) -> str:
    return b64encode(np.ascontiguousarray(numbers, dtype="<f4").tobytes()).decode("ascii")


def _unpacked(text: str) -> Array:
    return np.frombuffer(b64decode(text, validate=True), dtype="<f4").astype(np.float64)


class Fitted(BaseModel):
    """Weights that are ready to score with.

    Attributes:
        key: What they were learnt from; other weights are of no use.
        names: Base and experts.
        rows: For each name the weights of the vector, of the n-grams and of a constant 1; their sum is the logarithm
            of an unnormalised probability.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    names: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]

    def posteriors(self, vector: Sequence[float], text: str) -> dict[str, float]:
        """Return the probability of each name."""
        seen, size = grams(text), len(vector)
        scores = [
            sum(map(mul, row[:size], vector))
            + sum(row[size + place] * value for place, value in seen.items())
            + row[-1]
            for row in self.rows
        ]
        best = max(scores)
        shares = [exp(score - best) for score in scores]
        return {name: share / sum(shares) for name, share in zip(self.names, shares, strict=True)}


def fit(statistics: Mapping[str, Statistics], lessons: Mapping[str, Array], *, size: int, key: str) -> Fitted:
    """Solve the regression and make its scores probabilities.

    Args:
        statistics: By name, of the base and of every expert.
        lessons: The rows of those whose texts are known, for the temperature.
        size: Dimensions of the embedder; what follows them are n-grams.
        key: See `Fitted.key`.
    """
    names = tuple(statistics)
    whole = next(iter(statistics.values()))
    for other in list(statistics.values())[1:]:
        whole += other
    middle = whole.total / whole.count
    spread = whole.scatter - whole.count * np.outer(middle, middle)
    inverse = np.linalg.inv(spread + np.diag(_penalties(np.diagonal(spread), size) / whole.count))
    counts = np.array([statistics[name].count for name in names], dtype=np.float64)
    totals = np.column_stack([statistics[name].total for name in names])
    weights = inverse @ (totals - np.outer(middle, counts))
    shares = counts / whole.count
    rows = np.concatenate(list(lessons.values())) - middle
    labels = np.repeat([names.index(name) for name in lessons], [len(each) for each in lessons.values()])
    targets = np.eye(len(names))[labels]
    # what each text would have been given, had it not been learnt: exact for ridge regression (Cook 1977)
    leverage = ((rows @ inverse) * rows).sum(axis=1) + 1 / whole.count
    left_out = targets - (targets - rows @ weights - shares) / (1 - leverage)[:, None]
    sharp = _sharpness(left_out, labels)
    table = np.vstack([weights, shares - middle @ weights]).T * sharp
    return Fitted(key=key, names=names, rows=tuple(tuple(float(f"{one:.4g}") for one in row) for row in table))


def _penalties(variances: Array, size: int) -> Array:
    """Return the penalty of each feature: the strength of its block times what a text varies in that block."""
    blocks = (variances[:size], variances[size:])
    # a little for a block in which nothing varies
    penalties = [strength * block.sum() + 1e-6 for block, strength in zip(blocks, PENALTY, strict=True)]
    return np.repeat(penalties, [len(block) for block in blocks])


def _sharpness(scores: Array, labels: NDArray[np.int_]) -> float:
    """Return the inverse temperature that makes the left-out texts likeliest (Guo et al. 2017, arXiv:1706.04599)."""

    def loss(sharp: float) -> float:
        logits = sharp * (scores - scores.max(axis=1, keepdims=True))
        chosen = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return float((np.log(np.exp(logits).sum(axis=1)) - chosen).mean())

    return min((float(sharp) for sharp in np.geomspace(1, 40, 150)), key=loss)
