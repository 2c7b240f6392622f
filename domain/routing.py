"""Which expert answers: pure decisions over scores that a scorer gave."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

BASE = "base"


class KnowledgeKind(StrEnum):
    """What an expert is good for; sets its sampling band and who wins a conflict."""

    CORE = "core"
    STYLE = "style"
    FACT = "fact"


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


@dataclass(frozen=True, slots=True)
class Decision:
    """The chosen expert, how sure the router is (0 to 1), and why, in words for the user."""

    expert: str
    confidence: float
    reason: str


@dataclass(frozen=True, slots=True)
class Router:
    """Chooses an expert from calibrated posteriors; abstains to the base, and does not switch for a small gain.

    Attributes:
        abstain_below: Posterior under which nobody is sure enough and the base answers.
        stickiness: How much a newcomer's posterior must exceed that of the expert in charge.
    """

    abstain_below: float = 0.5
    stickiness: float = 0.1

    def choose(self, posteriors: Mapping[str, float], *, in_charge: str = BASE) -> Decision:
        """Return the decision for one turn; without any posterior the base answers."""
        if not posteriors:
            return Decision(BASE, 1.0, "没有安装专家，由基础人格回答")
        best = max(sorted(posteriors), key=lambda name: posteriors[name])  # a tie goes by the alphabet, not by chance
        sure = posteriors[best]
        if sure < self.abstain_below:
            return Decision(BASE, 1.0 - sure, f"最接近的专家 {best} 只有 {sure:.0%} 把握")
        held = posteriors.get(in_charge, 0.0)
        if in_charge != best and held >= self.abstain_below and sure < held + self.stickiness:
            return Decision(in_charge, held, f"话题延续，{best} 的优势不足以换人")
        return Decision(best, sure, f"{best} 的把握最高：{sure:.0%}")
