"""The one prompt layout, for serving and for training: from what never changes to what changes every turn."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain, dropwhile

from domain.character import Character, Exchange
from domain.conversation import Message, Role
from domain.emotion import EmotionLabel


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn; the defaults are those that the starter speaks best with.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: Share of the probability mass that is drawn from.
        repetition_penalty: Divides the score of tokens already said; 1 is off.
        max_tokens: Longest reply, in tokens.
        seed: Makes a reply repeatable where the backend allows it.
    """

    temperature: float = 0.3
    top_p: float = 0.9
    repetition_penalty: float = 1.05
    max_tokens: int = 160
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model continues, in parts ordered from stable to volatile.

    Attributes:
        user_name: What the script calls the user.
        her_name: What the script calls her.
        persona: Who she is; the same in every prompt of a character.
        fixed: Examples that stand in every prompt.
        profile: What is known of the user, one line; changes rarely.
        history: The conversation so far.
        notes: The volatile lines: recalled memories, the clock, her mood.
        found: Examples like this turn, as pairs of a user's line and her answer.
        words: What the user says now.
        expert_tag: The tag of the expert whose weights answer; empty for the base model. Only this field makes a tag:
            one in anybody's words is defused where the prompt is laid out.
    """

    user_name: str
    her_name: str
    persona: str
    words: str
    fixed: tuple[Exchange, ...] = ()
    profile: str = ""
    history: tuple[Message, ...] = ()
    notes: tuple[str, ...] = ()
    found: tuple[tuple[str, str], ...] = ()
    expert_tag: str = ""

    @property
    def volatile(self) -> str:
        """The block that every turn computes anew, right before the user's words; one line for each part."""
        tag = [f"[EXPERT={self.expert_tag}]"] if self.expert_tag else []
        pairs = ((f"【例】{question}", f"【{self.her_name}】{answer}") for question, answer in self.found)
        lines = (*chain.from_iterable(pairs), *self.notes)
        return "\n".join([*tag, *(" ".join(defused(line).split()) for line in lines)])

    @property
    def system(self) -> str:
        """The part that a prefix cache keeps: persona and profile."""
        return defused(f"{self.persona}\n{self.profile}" if self.profile else self.persona)


# An expert's tag as far as it gives itself away, in halfwidth and fullwidth letters.
_TAG = re.compile(r"[\[［【](\s*)([EＥ][XＸ][PＰ][EＥ][RＲ][TＴ])(\s*)[=＝]", re.IGNORECASE)


def defused(text: str) -> str:
    """Return text in which nothing can be taken for the tag of an expert: `[EXPERT=` becomes `（EXPERT：`."""
    return _TAG.sub(r"（\1\2\3：", text)


_MARK = re.compile(r"<[^<>\s]+>")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the parts become one text for a model without a chat template.

    Attributes:
        user_open: Before the user's words; `{user}` stands for the name.
        her_open: Before her words; `{her}` stands for the name.
        user_close: After the user's words.
        her_close: After her words: the end of turn that training teaches and generation stops at.
        one_line: Whether a newline would end a turn, so that the lines of a message are joined.
    """

    user_open: str
    user_close: str
    her_open: str
    her_close: str
    one_line: bool = False

    def clean(self, text: str) -> str:
        """Return text that cannot be taken for the layout's own marks."""
        for mark in _MARK.findall(self.user_open + self.user_close + self.her_open + self.her_close):
            # a blank inside: leaving the mark out could join what stands around it into another one
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return " ".join(text.split()) if self.one_line else text

    def stops(self, user_name: str) -> tuple[str, str]:
        """Return the strings that end her turn: its close, and the user's next words, which she shall not write."""
        opening = self.user_open.format(user=user_name)
        mark = _MARK.match(opening)
        return self.her_close.strip() or self.her_close, mark[0] if mark else opening


# A script with names, which a base model continues well; and Gemma's own turn marks, which an adapter is trained on.
SCRIPT = Layout("{user}：", "\n", "{her}：", "\n", one_line=True)
TURNS = Layout("<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>\n")
LAYOUTS = {"script": SCRIPT, "turns": TURNS}


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a rendered prompt; `hers` marks what she says herself, the only text that training learns."""

    text: str
    hers: bool = False


def segments(prompt: Prompt, layout: Layout, reply: str | None = None) -> tuple[Segment, ...]:
    """Lay the prompt out; with `reply`, her answer and its end of turn follow as the last segment.

    Joined without `reply`, the texts are exactly what is generated from; joined with it, exactly what is trained on.
    """
    opens = {
        Role.USER: layout.user_open.format(user=prompt.user_name),
        Role.HER: layout.her_open.format(her=prompt.her_name),
    }
    closes = {Role.USER: layout.user_close, Role.HER: layout.her_close}
    laid: list[Segment] = [Segment(defused(prompt.persona) + "\n")]

    def say(role: Role, text: str, *, hers: bool = False) -> None:
        laid.append(Segment(opens[role]))
        laid.append(Segment(layout.clean(defused(text)) + closes[role], hers=hers))

    for exchange in prompt.fixed:
        for place, line in enumerate(exchange.turns):
            say(Role.HER if place % 2 else Role.USER, line)
    if prompt.profile:
        laid.append(Segment(layout.clean(defused(prompt.profile)) + "\n"))
    for message in prompt.history:
        say(message.role, message.text, hers=message.role is Role.HER)
    # recalled memories are the user's words too
    volatile = "".join(layout.clean(line) + "\n" for line in prompt.volatile.splitlines())
    if layout.one_line:
        laid.append(Segment(volatile + opens[Role.USER]))
    else:
        laid.append(Segment(opens[Role.USER] + volatile))
    laid.append(Segment(layout.clean(defused(prompt.words)) + layout.user_close + opens[Role.HER]))
    if reply is not None:
        laid.append(Segment(layout.clean(reply) + layout.her_close, hers=True))
    return tuple(laid)


def as_text(prompt: Prompt, layout: Layout) -> str:
    """Return the text that a model without a chat template continues."""
    return "".join(segment.text for segment in segments(prompt, layout))


def as_messages(prompt: Prompt) -> list[tuple[str, str]]:
    """Return (role, content) pairs for a chat template: one system message, then user and assistant in turn."""
    messages = [("system", prompt.system)]
    for exchange in prompt.fixed:
        lines = map(defused, exchange.turns)
        messages.extend(("assistant" if place % 2 else "user", line) for place, line in enumerate(lines))
    # templates refuse an answer without a question, which the window may have cut off
    history = dropwhile(lambda said: said.role is Role.HER, prompt.history)
    messages.extend(("assistant" if said.role is Role.HER else "user", defused(said.text)) for said in history)
    volatile, words = prompt.volatile, defused(prompt.words)
    messages.append(("user", f"{volatile}\n\n{words}" if volatile else words))
    return _alternating(messages)


def _alternating(messages: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Join neighbours of one role: an unanswered line would break templates that insist on alternation."""
    joined: list[tuple[str, str]] = []
    for role, text in messages:
        if joined and joined[-1][0] == role:
            joined[-1] = (role, f"{joined[-1][1]}\n{text}")
        else:
            joined.append((role, text))
    return joined


_MOOD_WORDS = {
    EmotionLabel.NEUTRAL: "平静",
    EmotionLabel.JOY: "开心",
    EmotionLabel.LAUGH: "乐呵呵",
    EmotionLabel.SHY: "害羞",
    EmotionLabel.TEASE: "调皮",
    EmotionLabel.SURPRISE: "惊讶",
    EmotionLabel.THINK: "若有所思",
    EmotionLabel.SAD: "难过",
    EmotionLabel.ANXIOUS: "担心",
    EmotionLabel.COMFORT: "心疼",
    EmotionLabel.ANGRY: "有点生气",
    EmotionLabel.SLEEPY: "犯困",
    EmotionLabel.FOCUSED: "认真",
}
_DIGITS = "零一二三四五六七八九十"


def mood_word(label: EmotionLabel) -> str:
    """Return the Chinese word for a shown emotion."""
    return _MOOD_WORDS[label]


def _number(value: int) -> str:
    """Return 0 to 59 in Chinese numerals."""
    tens, ones = divmod(value, 10)
    head = "" if tens == 0 else ("十" if tens == 1 else _DIGITS[tens] + "十")
    return head + (_DIGITS[ones] if ones or not tens else "")


def clock_words(now: datetime) -> str:
    """Return local time in words that she can say as they stand: 2026年3月14日，星期六，晚上十点四十分."""
    hour = now.hour
    part = "凌晨早上上午中午下午傍晚晚上深夜"
    bounds = (5, 8, 12, 13, 17, 19, 23, 24)
    place = next(index for index, bound in enumerate(bounds) if hour < bound)
    twelve = hour if hour <= 12 else hour - 12
    spoken = "两" if twelve == 2 else _number(twelve)
    minute = "整" if now.minute == 0 else ("零" if now.minute < 10 else "") + _number(now.minute) + "分"
    weekday = "一二三四五六日"[now.weekday()]
    return f"{now.year}年{now.month}月{now.day}日，星期{weekday}，{part[2 * place : 2 * place + 2]}{spoken}点{minute}"


def profile_line(character: Character, called: str | None) -> str:
    """Return the line that says whom she talks to."""
    return f"和{character.display_name}说话的人叫{called}。" if called else ""


def notes_for(now: datetime, mood: EmotionLabel, memories: Sequence[str]) -> tuple[str, ...]:
    """Return the volatile lines: what she recalls, as quoted data, then the clock and her mood."""
    return (*(f"【记得】{line}" for line in memories), f"【此刻】{clock_words(now)}", f"【心情】{mood_word(mood)}")


def within_budget(prompt: Prompt, budget: int, count: Callable[[str], int]) -> Prompt:
    """Leave out found examples, the least similar first, until the volatile block costs at most `budget` tokens."""
    while prompt.found and count(prompt.volatile) > budget:
        prompt = replace(prompt, found=prompt.found[:-1])
    return prompt
