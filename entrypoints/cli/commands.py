"""The slash commands of the terminal."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.console import Console

from application.feedback import RateReply
from domain.conversation import Session, Turn
from domain.errors import BadInput, ZishuError
from domain.prompt import mood_word
from entrypoints.cli.display import print_zishu_error
from entrypoints.cli.encounter import Encounter
from entrypoints.container import Container
from entrypoints.messages import say
from entrypoints.settings import Settings


class SlashCommands:
    """What a line that begins with a slash does."""

    def __init__(self, container: Container, settings: Settings, encounter: Encounter, console: Console) -> None:
        self._container = container
        self._language = settings.language
        self._encounter = encounter
        self._console = console
        self._rate = RateReply(container.feedback(), container.clock())
        self.leaving = False
        self._commands: dict[str, Callable[[str], Awaitable[None]]] = {
            "/help": self._help,
            "/history": self._history,
            "/characters": self._characters,
            "/mood": self._mood,
            "/good": lambda note: self._rated(note, good=True),
            "/bad": lambda note: self._rated(note, good=False),
            "/new": self._new,
            "/export": self._export,
            "/quit": self._quit,
        }

    async def run(self, line: str) -> None:
        """Carry out one command; a mistake is explained and changes nothing."""
        name, _, rest = line.strip().partition(" ")
        command = self._commands.get(name.lower())
        if command is None:
            self._tell("unknown_command", command=name)
            return
        try:
            await command(rest.strip())
        except ZishuError as error:
            print_zishu_error(error, self._language)

    def _tell(self, key: str, **values: object) -> None:
        self._console.print(say(key, self._language, **values), style="dim", markup=False)

    async def _session(self) -> Session:
        session: Session = await self._container.sessions().open(self._encounter.scope, now=self._container.clock()())
        return session

    async def _help(self, _: str) -> None:
        for name in self._commands:
            self._console.print(f"  {name:<12} {say('help.' + name, self._language)}", markup=False)

    async def _history(self, _: str) -> None:
        session = await self._session()
        if not session.turns:
            self._tell("no_history")
        for turn in session.turns:
            self._console.print(
                f"[dim]{turn.said_at.astimezone():%m-%d %H:%M}[/] {say('you', self._language)}：", end=""
            )
            self._console.print(turn.user_text, markup=False)
            self._console.print(f"[bold #A48BD0]{self._encounter.character.display_name}：[/]", end="")
            self._console.print(turn.heard, markup=False)

    async def _characters(self, name: str) -> None:
        if name:
            self._encounter.meet(name)
            self._tell("now_with", name=self._encounter.character.display_name)
            return
        for each in self._container.characters().names():
            mark = "→" if each == self._encounter.character.id else " "
            loaded = self._container.characters().load(each)
            self._console.print(f" {mark} {each:<12} {loaded.display_name}  {loaded.persona.summary}", markup=False)

    async def _mood(self, _: str) -> None:
        session = await self._session()
        mood = session.mood
        word = mood_word(session.face.label)
        self._tell("mood", word=word, v=mood.valence, a=mood.arousal, d=mood.dominance)

    async def _rated(self, note: str, *, good: bool) -> None:
        await self._rate.last(await self._session(), good=good, note=note)
        self._tell("rated_good" if good else "rated_bad")

    async def _new(self, _: str) -> None:
        await self._container.sessions().start_new(self._encounter.scope, now=self._container.clock()())
        self._tell("new_conversation")

    async def _export(self, target: str) -> None:
        session = await self._session()
        turns = await self._container.sessions().read(self._encounter.scope, session.id)
        path = await asyncio.to_thread(_write, target or f"zishu-{session.id}.jsonl", turns)
        self._tell("exported", path=path, turns=len(turns))

    async def _quit(self, _: str) -> None:
        self.leaving = True


def _write(target: str, turns: list[Turn]) -> Path:
    """Write a conversation as JSON lines and return where."""
    path = Path(target).expanduser()
    try:
        path.write_text("".join(_line(turn) for turn in turns), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}.", "Give another path: /export PATH.") from error
    return path


def _line(turn: Turn) -> str:
    """Return one turn as a line of JSON."""
    fields = {
        "id": str(turn.id), "at": turn.said_at.isoformat(), "user": turn.user_text, "reply": turn.heard,
        "state": turn.state, "expert": turn.expert, "emotion": turn.emotion.label,
    }  # fmt: skip
    return json.dumps(fields, ensure_ascii=False) + "\n"
