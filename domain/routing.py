"""Which expert answers: pure decisions over scores that a scorer gave."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from unicodedata import normalize

BASE = "base"


class KnowledgeKind(StrEnum):
    """What an expert is good for; sets its sampling band and who wins a conflict."""

    CORE = "core"
    STYLE = "style"
    FACT = "fact"

    @property
    def temperature(self) -> tuple[float, float]:
        """The band that an expert of this kind speaks best in; the seed's values per kind of knowledge."""
        return {"core": (0.5, 0.7), "style": (0.7, 0.8), "fact": (0.3, 0.5)}[self.value]


def _mentions(phrase: str, text: str) -> bool:
    """Tell whether a phrase stands in a text; one of Latin letters counts as a whole word only."""
    plain = normalize("NFKC", phrase).casefold()
    if plain.isascii():
        return re.search(rf"(?<![a-z0-9]){re.escape(plain)}(?![a-z0-9])", text) is not None
    return plain in text


@dataclass(frozen=True, slots=True)
class Boundaries:
    """Where an expert's knowledge ends, as words and phrases.

    Attributes:
        in_favour: What speaks for it.
        against: What belongs to somebody else.
    """

    in_favour: tuple[str, ...] = ()
    against: tuple[str, ...] = ()

    def found(self, words: str) -> tuple[str | None, str | None]:
        """Return the first phrase in favour and the first against that the words mention."""
        text = normalize("NFKC", words).casefold()
        favour = next((each for each in self.in_favour if _mentions(each, text)), None)
        return favour, next((each for each in self.against if _mentions(each, text)), None)


@dataclass(frozen=True, slots=True)
class OwnBackend:
    """A language model of an expert's own.

    Attributes:
        use: Name of the language-model backend.
        table: Its settings, which the backend itself checks.
    """

    use: str
    table: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Expert:
    """A mind she can answer through.

    Attributes:
        name: Lower-case identifier, also the name of its folder.
        tag: Upper-case tag of the prompt layout, such as `ANIME`.
        title: What the user reads, in Chinese.
        kind: Kind of knowledge; a factual expert wins a close call on a factual question.
        temperature: Lowest and highest sampling temperature it answers at.
        precision: Precision its weights are kept in, such as `bf16` or `int8`.
        priority: Who is asked first; higher wins a tie.
        pinned: Whether its adapter stays in fast memory.
        base: The model that its adapter was trained on, such as `starter`.
        adapter: The folder of its LoRA adapter; None where it has none yet, so that the base model answers for it.
        backend: A language model of its own, which answers instead of the base model.
        boundaries: What belongs to it and what does not.
        examples: What users say who need it; a scorer learns from them.
        folder: Where it was read from; a scorer may find statistics there instead of examples.
    """

    name: str
    tag: str
    title: str
    kind: KnowledgeKind
    temperature: tuple[float, float]
    precision: str = "auto"
    priority: int = 0
    pinned: bool = False
    base: str = ""
    adapter: Path | None = None
    backend: OwnBackend | None = None
    boundaries: Boundaries = Boundaries()
    examples: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def speaks_itself(self) -> bool:
        """Whether weights of its own answer, and not the base model's."""
        return self.adapter is not None or self.backend is not None


@dataclass(frozen=True, slots=True)
class Decision:
    """The chosen expert, how sure the router is (0 to 1), why, in words for the user, and who came next."""

    expert: str
    confidence: float
    reason: str
    runners_up: tuple[tuple[str, float], ...] = ()


_ASKS_FACT = re.compile(
    r"谁(?!懂|知道|不|都|也|叫|让|要是)|什么时候|何时|哪[一]?[年天月]|几几年|几[年月号岁集季话卷部个次位点代章]|第几|多少(?!有点)|多[大高久长重远]"
    r"|哪[一]?[个位家部季集国]|哪里|哪儿|叫(?:什么|啥)|(?:什么|啥)名字|全名|本名|生日|出自|首播|发售|声优|原作者|作者是|监督是|导演是"
    r"|\b(?:who|whom|whose|when|where|which|how (?:many|much|old|long|tall))\b"
    r"|\bwhat(?:'s| is)? (?:year|date|time|the name)\b",
    re.IGNORECASE,
)
_ASKS_OPINION = re.compile(
    r"为什么|为啥|怎么看|怎样看|如何|觉得|认为|喜欢|评价|分析|意义|象征|动机"
    r"|\b(?:why|how come|think|feel|opinion|meaning)\b",
    re.IGNORECASE,
)


def is_factual(words: str) -> bool:
    """Tell whether words ask for a fact (who, when, how many, which), and not for a view of it."""
    return _ASKS_FACT.search(words) is not None and _ASKS_OPINION.search(words) is None


@dataclass(frozen=True, slots=True)
class Router:
    """Chooses an expert from calibrated posteriors; abstains to the base, and does not switch for a small gain.

    Attributes:
        abstain_below: Posterior under which nobody is sure enough and the base answers. Experts that are close to one
            another share it: that it must be one of them is certain, only not which.
        stickiness: How much a newcomer's posterior must exceed that of the expert in charge, who also stays with so
            much less than `abstain_below`, but never with less than half of that. Where a switch drops no cache,
            because the weights stay, half of it counts.
        close: Distance of two posteriors under which their experts are in conflict.
        evidence: Factor on the odds of an expert for a phrase of its boundaries, upwards or downwards.
    """

    abstain_below: float = 0.5
    stickiness: float = 0.1
    close: float = 0.15
    evidence: float = 2.0

    def choose(
        self, posteriors: Mapping[str, float], *, in_charge: str = BASE, words: str = "", experts: Sequence[Expert] = ()
    ) -> Decision:
        """Return the decision for one turn; without any expert's posterior the base answers.

        Args:
            posteriors: By name, those of the base included; they add up to 1.
            in_charge: Who answered the turn before.
            words: What the user says: boundaries and questions of fact are found in it.
            experts: Who the names are.
        """
        known = {expert.name: expert for expert in experts}
        weighed = self._weigh(posteriors, words, known)
        ranked = sorted(weighed.keys() - {BASE}, key=lambda name: (-weighed[name], -_priority(name, known), name))
        if not ranked:
            return Decision(BASE, 1.0, "没有安装专家，由基础人格回答")
        rivals = [name for name in ranked if weighed[name] > max(0.0, weighed[ranked[0]] - self.close)]
        facts = [name for name in rivals if name in known and known[name].kind is KnowledgeKind.FACT]
        by_fact = bool(facts) and len(rivals) > 1 and is_factual(words)
        best = facts[0] if by_fact else ranked[0]
        together, base = sum(weighed[name] for name in rivals), weighed.get(BASE, 0.0)
        chosen = best if together >= self.abstain_below and weighed[ranked[0]] >= base else BASE
        if not (by_fact and chosen != BASE) and self._stays(in_charge, chosen, weighed, known):
            reason = _stay_reason(in_charge, chosen, known)
            chosen = in_charge
        elif chosen == BASE:
            reason = _base_reason(base, ranked[0], weighed, known)
        else:
            reason = _expert_reason(chosen, rivals, weighed, known, by_fact=by_fact, words=words)
        reason += _fallback(known.get(chosen))
        others = sorted(
            ((name, share) for name, share in weighed.items() if name != chosen), key=lambda pair: (-pair[1], pair[0])
        )
        return Decision(chosen, min(1.0, weighed.get(chosen, 0.0)), reason, tuple(others[:3]))

    def obey(self, name: str, *, experts: Sequence[Expert] = ()) -> Decision:
        """Return the decision where a trusted caller has named who answers."""
        expert = next((expert for expert in experts if expert.name == name), None)
        return Decision(name, 1.0, "由可信的调用方指定" + _fallback(expert))

    def _weigh(self, posteriors: Mapping[str, float], words: str, known: Mapping[str, Expert]) -> dict[str, float]:
        """Return the posteriors after what the boundaries say, a Bayes factor each."""
        weighed = dict(posteriors)
        for name in weighed.keys() & known.keys():
            favour, against = known[name].boundaries.found(words)
            weighed[name] *= self.evidence ** (bool(favour) - bool(against))
        if weighed == posteriors:
            return weighed
        total = sum(weighed.values())
        return {name: share / total for name, share in weighed.items()} if total else weighed

    def _stays(self, in_charge: str, chosen: str, weighed: Mapping[str, float], known: Mapping[str, Expert]) -> bool:
        """Tell whether the expert in charge goes on although another one would be chosen."""
        if in_charge in (BASE, chosen) or in_charge not in weighed:
            return False
        changes = any(name in known and known[name].speaks_itself for name in (in_charge, chosen))
        margin = self.stickiness if changes or not known else self.stickiness / 2
        held, enough = weighed[in_charge], max(self.abstain_below - margin, self.abstain_below / 2)
        return held >= enough and weighed.get(chosen, 0.0) < held + margin


def _priority(name: str, known: Mapping[str, Expert]) -> int:
    return known[name].priority if name in known else 0


def _title(name: str, known: Mapping[str, Expert]) -> str:
    return f"「{known[name].title if name in known else name}」"


def _fallback(expert: Expert | None) -> str:
    """Say so where the base model answers for an expert."""
    return "；没有可用的适配器，先由基础模型回答" if expert and not expert.speaks_itself else ""


def _stay_reason(in_charge: str, chosen: str, known: Mapping[str, Expert]) -> str:
    if chosen == BASE:
        return f"话题延续，仍由{_title(in_charge, known)}回答"
    return f"话题延续，{_title(chosen, known)}的优势不足以换人，仍由{_title(in_charge, known)}回答"


def _base_reason(base: float, nearest: str, weighed: Mapping[str, float], known: Mapping[str, Expert]) -> str:
    if base >= weighed[nearest]:
        return f"不像专家的话题，由基础人格回答（{base:.0%}）"
    return f"最接近的{_title(nearest, known)}只有 {weighed[nearest]:.0%} 把握，由基础人格回答"


def _expert_reason(
    chosen: str,
    rivals: Sequence[str],
    weighed: Mapping[str, float],
    known: Mapping[str, Expert],
    *,
    by_fact: bool,
    words: str,
) -> str:
    share, title = f"{weighed[chosen]:.0%}", _title(chosen, known)
    if len(rivals) > 1:
        both = "和".join(_title(name, known) for name in rivals[:2])
        rule = "这是在问事实，交给" if by_fact else "按把握和知识边界交给"
        return f"{both}都说得上话，{rule}{title}（{share}）"
    phrase = known[chosen].boundaries.found(words)[0] if chosen in known else None
    return f"{title}最有把握（{share}）" + (f"，提到了“{phrase}”" if phrase else "")
