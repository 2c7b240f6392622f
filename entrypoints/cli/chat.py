"""`zishu cli`: a conversation in the terminal, one reply, or one for every line that is piped in."""

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from domain.errors import ZishuError
from domain.events import ReplyFailed
from entrypoints.cli.commands import SlashCommands
from entrypoints.cli.display import Display, JsonDisplay, TerminalDisplay, print_zishu_error
from entrypoints.cli.encounter import Encounter
from entrypoints.container import Container, awake, build_container, uses_starter
from entrypoints.messages import Language, say
from entrypoints.settings import Settings, load_settings

# A piped line longer than this is cut; `acceptable` refuses it anyway.
_LONGEST_LINE = 4_000_000


def run(*, once: str | None, user: str | None, character: str | None, backend: str | None, as_json: bool) -> int:
    """Talk until the input ends; return the exit status: 1 when a turn failed and nobody was there to see it."""
    section = None if backend is None else {"use": backend}
    settings = load_settings(user=user, character=character, language_model=section)
    return asyncio.run(_talk(settings, once=once, as_json=as_json))


async def _talk(settings: Settings, *, once: str | None, as_json: bool) -> int:
    container = build_container(settings)
    notes = Console(stderr=True)
    name = container.characters().load(settings.character).display_name
    with _progress(notes, settings.language, name) as report:
        async with awake(container, report):
            report("", 0, 0)
            terminal = Terminal(container, settings, as_json=as_json)
            if once is not None:
                return 0 if await terminal.turn(once) else 1
            if sys.stdin.isatty() and not as_json:
                return await terminal.converse()
            return await terminal.answer_lines()


@contextmanager
def _progress(console: Console, language: Language, name: str) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function (step, done, total) that draws a bar while she wakes up, and with an empty step removes it."""
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip
    tasks = {}

    def report(step: str, done: int, total: int) -> None:
        if not step:
            bar.stop()
            return
        if step not in tasks:
            tasks[step] = bar.add_task(say(step, language, name=name), total=None)
        bar.update(tasks[step], completed=done, total=total or None)

    bar.start()
    try:
        yield report
    finally:
        bar.stop()


class Terminal:
    """One user and one character at a terminal."""

    def __init__(self, container: Container, settings: Settings, *, as_json: bool) -> None:
        self._container = container
        self._settings = settings
        self._converse = container.converse()
        self._sessions = container.sessions()
        self._console = Console(soft_wrap=True, highlight=False)
        self._encounter = Encounter(settings.user, container.characters(), settings.character)
        self._display: Display = JsonDisplay() if as_json else TerminalDisplay(self._console, settings.language)

    async def turn(self, words: str) -> bool:
        """Show her reply to some words; return whether it came to its end. Ctrl-C stops the reply alone."""
        task = asyncio.create_task(self._show(words))
        with _on_ctrl_c(task.cancel):
            try:
                return await task
            except asyncio.CancelledError:
                self._display.interrupted()
                return True
            except ZishuError as error:
                print_zishu_error(error, self._settings.language)
                return False

    async def _show(self, words: str) -> bool:
        finished = True
        async with aclosing(self._converse.reply(self._encounter.scope, words)) as events:
            async for event in events:
                self._display.show(event, self._encounter.character)
                finished = not isinstance(event, ReplyFailed)
        return finished

    async def answer_lines(self) -> int:
        """Answer each line of the standard input; blank lines are passed over."""
        failed = 0
        async with aclosing(_lines(self._broken_text)) as lines:
            async for line in lines:
                failed += not await self.turn(line)
        return 1 if failed else 0

    def _broken_text(self) -> None:
        Console(stderr=True).print(say("broken_text", self._settings.language), style="dim")

    async def converse(self) -> int:
        """Talk with a person who sits at the keyboard, until /quit or Ctrl-D."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.patch_stdout import patch_stdout

        keys = KeyBindings()
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        session = await self._sessions.open(self._encounter.scope, now=self._container.clock()())
        history = InMemoryHistory([turn.user_text for turn in session.turns])
        prompt: PromptSession[str] = PromptSession(history=history, key_bindings=keys)
        commands = SlashCommands(self._container, self._settings, self._encounter, self._console)
        self._greet(first=not session.turns)
        language = self._settings.language
        with patch_stdout(raw=True):
            if not session.turns and (name := (await prompt.prompt_async(say("ask_name", language))).strip()):
                await self.turn(say("told_name", "zh", name=name))
            while not commands.leaving:
                try:
                    words = await prompt.prompt_async(f"{say('you', language)}：")
                except KeyboardInterrupt:
                    continue
                except EOFError:
                    break
                if words.startswith("/"):
                    await commands.run(words)
                elif words.strip():
                    await self.turn(words)
        self._console.print(say("bye", language), style="dim")
        return 0

    def _greet(self, *, first: bool) -> None:
        character = self._encounter.character
        line = character.greetings.first if first else character.greetings.at(self._container.clock()().hour)
        if first and uses_starter(self._settings):
            self._console.print(say("starter_terms", self._settings.language), style="dim")
        self._console.print(say("ready", self._settings.language), style="dim")
        self._console.print(f"[bold #A48BD0]{character.display_name}：[/]{line}")


async def _lines(on_broken: Callable[[], None]) -> AsyncGenerator[str, None]:
    """Yield the lines of the standard input as they come; bytes that are no UTF-8 are replaced and reported once."""
    reported = False
    while raw := await asyncio.to_thread(sys.stdin.buffer.readline, _LONGEST_LINE):
        line = raw.decode("utf-8", errors="replace")
        if not reported and "\ufffd" in line:
            reported = True
            on_broken()
        if line.strip():
            yield line


@contextmanager
def _on_ctrl_c(stop: Callable[[], object]) -> Iterator[None]:
    """Let Ctrl-C call `stop` in the event loop, instead of ending the program."""
    loop = asyncio.get_running_loop()
    before = signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(stop))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
