"""Shows a stream of reply events to a person at a terminal, or to a program as JSON lines."""

import json
import sys
from typing import Protocol

from rich.console import Console
from rich.text import Text

from domain.character import Character
from domain.emotion import EmotionLabel
from domain.errors import ZishuError
from domain.events import (
    AccessoryChanged,
    Durability,
    EmotionChanged,
    ExpertChosen,
    HistoryTrimmed,
    MotionChosen,
    ReplyEvent,
    ReplyFailed,
    ReplyFinished,
    TextDelta,
    TurnStarted,
)
from domain.prompt import mood_word
from entrypoints.messages import Language, say
from entrypoints.wire import Envelopes

_FACES = {
    EmotionLabel.NEUTRAL: "( ・ω・)", EmotionLabel.JOY: "(*´▽｀*)", EmotionLabel.LAUGH: "(≧▽≦)",
    EmotionLabel.SHY: "(〃∀〃)", EmotionLabel.TEASE: "(๑¯∀¯๑)", EmotionLabel.SURPRISE: "(°ロ°)",
    EmotionLabel.THINK: "(・_・?)", EmotionLabel.SAD: "(´;ω;`)", EmotionLabel.ANXIOUS: "(；´д｀)",
    EmotionLabel.COMFORT: "(っ´ω`)っ", EmotionLabel.ANGRY: "(｀へ´)", EmotionLabel.SLEEPY: "(￣o￣)zz",
    EmotionLabel.FOCUSED: "(•̀ᴗ•́)و",
}  # fmt: skip
_MOTIONS = {
    "sway": "轻轻摇晃", "giggle": "咯咯笑", "hide_behind_book": "拿书挡脸", "lean_in": "凑近", "hop": "跳了一下",
    "tap_chin": "点着下巴", "lower_head": "低下头", "fidget": "捏着衣角", "reach_out": "伸出手",
    "puff_cheeks": "鼓起脸", "yawn": "打哈欠", "turn_page": "翻书", "wave": "挥手", "tuck_in": "掖被角", "hug": "抱抱",
    "pat_turtle": "摸摸墨墨", "clap": "拍手", "breathe": "",
}  # fmt: skip
_ACCESSORIES = {"turtle": "🐢", "ribbon": "🎀", "flower": "🌸", "none": ""}


class Display(Protocol):
    """Consumes the events of a turn."""

    def show(self, event: ReplyEvent, character: Character) -> None:
        """Show one event of a character's reply."""
        ...

    def interrupted(self) -> None:
        """Show that the user stopped her."""
        ...


class JsonDisplay:
    """One envelope a line, as on every other wire."""

    def __init__(self) -> None:
        self._envelopes = Envelopes()

    def show(self, event: ReplyEvent, character: Character) -> None:
        sys.stdout.write(json.dumps(self._envelopes.wrap(event), ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def interrupted(self) -> None:
        """A reader of JSON sees the end of the lines; there is nothing to add."""


class TerminalDisplay:
    """Streams her words, and on a terminal closes each reply with how she looks and how long it took."""

    def __init__(self, console: Console, language: Language) -> None:
        self._console = console
        self._language = language
        self._label = EmotionLabel.NEUTRAL
        self._motion = self._accessory = self._expert = ""

    def show(self, event: ReplyEvent, character: Character) -> None:
        match event:
            case TurnStarted():
                if event.durability is Durability.JOURNALLED:
                    self._note(say("journalled", self._language))
                self._console.print(Text(f"{character.display_name}：", style="bold #A48BD0"), end="")
            case ExpertChosen():
                self._expert = event.name
            case EmotionChanged():
                self._label = event.emotion.label
            case MotionChosen():
                self._motion = event.name
            case AccessoryChanged():
                self._accessory = event.name
            case HistoryTrimmed():
                self._note(say("trimmed", self._language, count=event.dropped_turns))
            case TextDelta():
                self._console.file.write(event.text)
                self._console.file.flush()
            case ReplyFinished():
                self._console.print()
                self._footer(event, self._accessory or character.appearance.accessory)
            case ReplyFailed():
                self._console.print()
                print_error(event.problem, event.remedy, self._language)
            case _:
                pass

    def interrupted(self) -> None:
        self._note(" " + say("interrupted", self._language))

    def _footer(self, event: ReplyFinished, accessory: str) -> None:
        if not self._console.is_terminal:
            return
        first = event.timings.first_token or event.timings.total
        parts = [_FACES[self._label], mood_word(self._label), _ACCESSORIES.get(accessory, accessory)]
        parts += [
            _MOTIONS.get(self._motion, self._motion),
            self._expert if self._expert != "base" else "",
            f"{first / 1000:.1f}s",
        ]
        self._note("  " + " · ".join(part for part in parts if part))
        self._motion = ""

    def _note(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))


def print_error(problem: str, remedy: str, language: Language) -> None:
    """Write what is wrong and what to do about it to the standard error."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text(say("error", language, problem=problem), style="red"))
    console.print(Text(say("remedy", language, remedy=remedy)))


def print_zishu_error(error: ZishuError, language: Language) -> None:
    """Write a deliberate error to the standard error."""
    print_error(error.problem, error.remedy, language)
