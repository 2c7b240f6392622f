"""A training run: its recipe, how far it has come, and the folder in which it can be resumed."""

import json
import math
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from adapters.data_folder import write_whole
from adapters.models.starter import SHA256
from domain.errors import BadInput
from training.exchanges import Split, fingerprint

if TYPE_CHECKING:
    from training.targets import HeldOut

BASE_NAME = "google/gemma-3-270m"


class Recipe(BaseModel):
    """Everything that decides what a run learns; kept in its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    character: str = "zishu"
    base: str = "starter"
    from_adapter: str | None = None
    layout: Literal["script", "turns"] = "script"
    examples: int = Field(2, ge=0, le=8)
    held_out: float = Field(0.08, gt=0, lt=0.5)
    epochs: float = Field(2.0, gt=0)
    minutes: float | None = Field(None, gt=0)
    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    learning_rate: float = Field(4e-4, gt=0)
    batch: int = Field(8, ge=1)
    micro_batch: int = Field(2, ge=1)
    evaluate_every: int = Field(60, ge=1)
    keep_every: int = Field(50, ge=1)
    seed: int = 0
    threads: int = Field(1, ge=1)


@dataclass(slots=True)
class Place:
    """How far a run has come; with weights, optimizer and random state all that a resumed run needs.

    Attributes:
        step: Optimizer steps done.
        epoch: The epoch that is being learnt.
        batch: The next batch of it.
        seconds: Time spent learning, without evaluations.
        tokens: Tokens read.
        before: Held-out bits per character of the bare base.
        best: The lowest held-out loss so far, reached at `best_step`.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    tokens: int = 0
    before: float = math.inf
    best: float = math.inf
    best_step: int = 0

    def progress(self, recipe: Recipe, batches: int) -> float:
        """Return the share of the run that is done: of the time where minutes are given, else of the epochs."""
        if recipe.minutes:
            return self.seconds / (60 * recipe.minutes)
        return self.step / math.ceil(recipe.epochs * batches)


class Watcher(Protocol):
    """Is told what a run does."""

    def stepped(self, place: Place, loss: float, progress: float) -> None:
        """A step was done."""
        ...

    def measured(self, place: Place, figures: "HeldOut") -> None:
        """The held-out replies were measured."""
        ...


class Run:
    """A run's folder: recipe, metrics, the checkpoint to resume from, and the best adapter so far.

    Args:
        folder: Where it lies.
        recipe: What is run.
        divided: The exchanges that are learnt and measured.
        watcher: Is told of every step.
        writes: Whether this process is the one that writes.

    Raises:
        BadInput: The folder holds a run of other exchanges.
    """

    def __init__(self, folder: Path, recipe: Recipe, divided: Split, watcher: Watcher, *, writes: bool) -> None:
        self.folder = folder
        self.recipe = recipe
        self._watcher = watcher
        self._writes = writes
        self._base = BASE_NAME if recipe.base == "starter" else Path(recipe.base).name
        self._metrics = folder / "metrics.jsonl"
        self._data = {
            "exchanges_sha256": fingerprint((*divided.train, *divided.held_out)),
            "learnt": len(divided.train),
            "held_out": len(divided.held_out),
            # what serving compares with the file that it has
            "base_sha256": SHA256 if recipe.base == "starter" else "",
        }
        if (folder / "data.json").exists() and json.loads((folder / "data.json").read_text()) != self._data:
            raise BadInput(
                f"The exchanges have changed since the run in {folder} began.", "Begin a new run, or put them back."
            )
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "data.json", json.dumps(self._data, indent=2) + "\n")
            write_whole(folder / "recipe.json", recipe.model_dump_json(indent=2) + "\n")

    def restore(self, model: Any, optimizer: Any) -> Place:  # noqa: ANN401 - peft is untyped
        """Bring weights, optimizer and random state to where the run was left, and return that place."""
        import torch
        from peft import set_peft_model_state_dict

        checkpoint = self.folder / "checkpoint.pt"
        if not checkpoint.exists():
            self._rewrite_metrics("")
            return Place()
        kept = torch.load(checkpoint, weights_only=True)
        set_peft_model_state_dict(model, kept["adapter"])
        optimizer.load_state_dict(kept["optimizer"])
        torch.set_rng_state(kept["random"])
        place = Place(**kept["place"])
        # steps after the checkpoint are done again, and would stand there twice
        lines = self._metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        self._rewrite_metrics("".join(line for line in lines if json.loads(line)["step"] <= place.step))
        return place

    def _rewrite_metrics(self, lines: str) -> None:
        if self._writes:
            write_whole(self._metrics, lines)

    def keep(self, model: Any, optimizer: Any, place: Place) -> None:  # noqa: ANN401
        """Write the checkpoint; a run killed meanwhile still has the one before."""
        if not self._writes:
            return
        import torch
        from peft import get_peft_model_state_dict

        unfinished = self.folder / "checkpoint.unfinished"
        kept = {
            "adapter": get_peft_model_state_dict(model),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "place": asdict(place),
        }
        torch.save(kept, unfinished)
        unfinished.replace(self.folder / "checkpoint.pt")

    def stepped(self, place: Place, *, loss: float, rate: float, norm: float, progress: float) -> None:
        """Note a step."""
        self._note(step=place.step, epoch=place.epoch, loss=loss, rate=rate, norm=norm, tokens=place.tokens)
        self._watcher.stepped(place, loss, progress)

    def measured(self, place: Place, figures: "HeldOut") -> None:
        """Note held-out figures."""
        self._note(step=place.step, held_out=asdict(figures))
        self._watcher.measured(place, figures)

    def _note(self, **line: object) -> None:
        if not self._writes:
            return
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def export(self, model: Any, place: Place, figures: "HeldOut") -> None:  # noqa: ANN401
        """Write the adapter as it is shipped: fp16 weights, peft's configuration without local paths, its card."""
        if not self._writes:
            return
        import torch
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        folder = self.folder / "adapter"
        folder.mkdir(exist_ok=True)
        weights = {
            name: weight.to(torch.float16).contiguous() for name, weight in get_peft_model_state_dict(model).items()
        }
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = model.peft_config["default"].to_dict()
        config |= {"base_model_name_or_path": self._base, "inference_mode": True}
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(config.items())}
        write_whole(folder / "adapter_config.json", json.dumps(plain, indent=2, default=str) + "\n")
        write_whole(folder / "starter.toml", self._card(place, figures))

    def _spent(self, place: Place) -> tuple[int, int, float]:
        """Return steps, tokens and minutes of learning, those of the adapter that was begun with included."""
        spent = (place.step, place.tokens, place.seconds / 60)
        if not self.recipe.from_adapter:
            return spent
        card = tomllib.loads((Path(self.recipe.from_adapter) / "starter.toml").read_text(encoding="utf-8"))["trained"]
        return spent[0] + card["steps"], spent[1] + card["tokens"], spent[2] + card["minutes"]

    def _card(self, place: Place, figures: "HeldOut") -> str:
        """Return `starter.toml`: what the adapter needs to be used, and what it was made from."""
        recipe, data = self.recipe, self._data
        steps, tokens, minutes = self._spent(place)
        return f"""# Written by training/finetune.py.
layout = "{recipe.layout}"
examples = {recipe.examples}
base = "{self._base}"
base_sha256 = "{data["base_sha256"]}"  # of the GGUF file

[trained]
character = "{recipe.character}"
exchanges = {data["learnt"]}
exchanges_sha256 = "{data["exchanges_sha256"]}"
steps = {steps}
tokens = {tokens}
minutes = {minutes:.1f}
seed = {recipe.seed}

[held_out]  # replies that were never learnt or shown
exchanges = {data["held_out"]}
bits_per_character_before = {place.before:.3f}
bits_per_character = {figures.bits_per_char:.3f}
bits_per_end_of_turn = {figures.end_bits:.3f}
loss = {figures.loss:.4f}  # nats per token, ends of turn included
"""
