"""Experts' adapters on a loaded model: on the device, in memory or on disk, with one of them active."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from time import perf_counter

import torch
from torch import Tensor

from adapters.language_model.transformers.config import Config
from adapters.language_model.transformers.lora_layers import Attached, LoraLayers, Model, Pairs
from adapters.models.lora import Abandoned, model_names, read_adapter
from adapters.models.plugged import Plugged, plugged_adapters
from domain.errors import BackendUnavailable, BadConfiguration, ZishuError
from domain.ports import Experts
from domain.residency import Counts, MarkovPredictor, Move, Place, Residency, Weights
from domain.routing import BASE

# What is asked after every swap: a few tokens of any vocabulary, and as many of the logits that follow.
_PROBE_TOKENS, _PROBE_LOGITS = 8, 64
# By how much of their largest the logits may differ: the same computed twice, on a GPU perhaps in another order.
_TOLERANCE = {torch.float32: 1e-3}
_HALF_TOLERANCE = 3e-2


def needs_unmerged(experts: Experts | None) -> bool:
    """Tell whether any expert brings an adapter: it replaces the persona's, which must not be merged in then."""
    return bool(plugged_adapters(experts))


@dataclass(frozen=True, slots=True)
class _Read:
    """An adapter in memory.

    Attributes:
        key: Names these weights among all others.
        pairs: Its numbers.
        seconds: What it took to read them.
    """

    key: str
    pairs: Pairs
    seconds: float

    def weights(self, source: Plugged) -> Weights:
        """Return what the places have to know."""
        size = sum(half.size for halves in self.pairs.values() for half in halves)
        return Weights(source.name, size, self.seconds, source.pinned)


class ExpertAdapters:
    """Makes a model answer with the adapter of an expert.

    `activate` belongs to the thread that runs the model; everything else may be called from any. One thread reads
    adapters, so that at most one load is in flight; whoever needs an adapter now interrupts what is read ahead.

    Args:
        model: Loaded, with the persona's adapter as one of peft's, not merged, where there is one.
        experts: Whose adapters there are.
        config: How many adapters the device and memory hold.
    """

    def __init__(self, model: Model, experts: Experts, config: Config) -> None:
        self._model = model
        self._experts = experts
        self._layers = LoraLayers(model)
        self._base = self._layers.base(model_names(config.model))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="experts")
        self._lock = Lock()  # over all that follows, except where only the model's thread comes
        self._places = Residency(config.expert_slots, config.expert_megabytes * 10**6)
        self._ram: dict[str, _Read] = {}
        self._device: dict[str, tuple[_Read, Attached]] = {}
        self._refused: dict[str, tuple[Plugged, ZishuError]] = {}
        self._chain = MarkovPredictor()
        self._hint: Mapping[str, float] = {}
        self._urgent: str | None = None
        self._stalled = 0.0
        self._answering = BASE
        self._active: tuple[str, str] | None = None  # what is on, by its name among the places, and its key
        self._first_logits: dict[str, Tensor] = {}

    @property
    def counts(self) -> Counts:
        """What became of the switches to an adapter so far."""
        return self._places.counts

    @property
    def stalled(self) -> float:
        """Seconds that replies have waited for an adapter so far."""
        return self._stalled

    def refused(self) -> Mapping[str, str]:
        """Return the experts whose adapter cannot be used, and why; the base answers for them."""
        with self._lock:
            return {name: str(error) for name, (_, error) in sorted(self._refused.items())}

    def close(self) -> None:
        """End the reading thread."""
        self._hint, self._urgent = {}, ""
        self._thread.shutdown()

    def anticipate(self, likely: Mapping[str, float]) -> None:
        """Read ahead what is likely to be needed next; never blocks.

        Args:
            likely: How likely each expert is the next one, by the router.
        """
        with suppress(RuntimeError):  # closed
            self._hint = likely
            self._thread.submit(self._read_ahead)

    def activate(self, expert: str) -> str:
        """Answer with an expert's adapter from now on, or without one where it has none that can be used.

        A broken adapter never stops a reply: its reason is kept in `refused`.

        Returns:
            The key of the weights that answer now, such as `culture@0123456789ab`, or `base`.
        """
        sources = plugged_adapters(self._experts)
        self._let_go(sources)
        source = sources.get(expert)
        if source is None or self._is_refused(source):
            return self._on(expert, None)
        if self._active and self._active[0] == source.name:
            return self._on(expert, self._active)
        began = perf_counter()
        on_device = source.name in self._device
        try:
            key = self._shown(source) if on_device else self._brought(source, self._next(sources, expert))
        except ZishuError as error:
            with self._lock:
                self._refused[expert] = (source, error)
                self._forget(source.name)
            return self._on(expert, None)
        if not on_device:
            self._stalled += perf_counter() - began
        return self._on(expert, (source.name, key))

    # What is plugged in

    def _let_go(self, sources: Mapping[str, Plugged]) -> None:
        """Free what is not plugged in any more."""
        names = {source.name for source in sources.values()}
        with self._lock:
            for name in (*(self._ram.keys() - names), *(self._device.keys() - names)):
                self._forget(name)
            self._refused = {name: why for name, why in self._refused.items() if sources.get(name) == why[0]}

    def _is_refused(self, source: Plugged) -> bool:
        """Tell whether an adapter cannot be used until its files change; what may pass is tried again."""
        _, error = self._refused.get(source.expert, (None, None))
        return isinstance(error, BadConfiguration)

    def _forget(self, name: str) -> None:
        self._places = self._places.forget(name)
        self._ram.pop(name, None)
        self._device.pop(name, None)

    # Switching, on the model's thread

    def _on(self, expert: str, active: tuple[str, str] | None) -> str:
        """Note who answers from now on, and with what; return its key."""
        if active is None and self._active:
            self._layers.put(None)
        self._active = active
        if expert != self._answering:
            self._chain, self._answering = self._chain.after(self._answering, expert), expert
        return active[1] if active else BASE

    def _next(self, sources: Mapping[str, Plugged], expert: str) -> Mapping[str, float]:
        """Return how likely each adapter is wanted after an expert, by its name among the places."""
        chances = self._chain.chances(expert, (BASE, *sources))
        return {sources[name].name if name in sources else name: chance for name, chance in chances.items()}

    def _shown(self, source: Plugged) -> str:
        """Make an adapter answer that is on the device."""
        read, attached = self._device[source.name]
        with self._lock:
            self._places, _ = self._places.use(read.weights(source))
        self._layers.put(attached)
        return read.key

    def _brought(self, source: Plugged, likely: Mapping[str, float]) -> str:
        """Bring an adapter onto the device and make it answer, if it answers as it did when it first came.

        Raises:
            ZishuError: It cannot be read or used.
        """
        for _ in range(2):  # memory may have gone bad: the disk is asked once more
            read = self._demanded(source)
            try:
                attached = self._layers.on_device(read.pairs)
                self._layers.put(attached)
                self._active = (source.name, read.key)
                faithful = self._is_faithful(read.key)
            except RuntimeError as error:
                raise _failed(source, error) from error
            with self._lock:
                if faithful:
                    self._places, moves = self._places.use(read.weights(source), likely)
                    self._device[source.name] = (read, attached)
                    self._follow(moves)
                    self._refused.pop(source.expert, None)
                    return read.key
                self._forget(source.name)
        raise BadConfiguration(
            f"The adapter in {source.folder} answers otherwise than when it first came, twice.",
            "Restore its folder; if it happens again, have the memory of this machine tested.",
        )

    def _follow(self, moves: tuple[Move, ...]) -> None:
        """Do what the places have decided; an adapter on the device leaves its copy in memory, to be kept or not."""
        for move in moves:
            if move.to is Place.RAM and move.name in self._device:
                self._ram[move.name], _ = self._device.pop(move.name)
            elif move.to is Place.DEVICE:
                self._ram.pop(move.name, None)
            elif move.to is Place.DISK:
                self._ram.pop(move.name, None)
                self._device.pop(move.name, None)

    def _is_faithful(self, key: str) -> bool:
        """Tell whether the model answers a probe as it did when this adapter first came.

        Raises:
            BadConfiguration: What it answers are no numbers.
        """
        tokens = torch.arange(_PROBE_TOKENS, device=self._layers.device).unsqueeze(0)
        with torch.inference_mode():
            logits = self._model(tokens, use_cache=False, logits_to_keep=1).logits[0, -1]
        probe = logits[:: max(1, len(logits) // _PROBE_LOGITS)].float().cpu()
        if not probe.isfinite().all():
            raise BadConfiguration("With this adapter the model answers nothing but NaN.", "Train the adapter again.")
        first = self._first_logits.setdefault(key, probe)
        allowed = _TOLERANCE.get(logits.dtype, _HALF_TOLERANCE) * float(first.abs().max())
        return float((probe - first).abs().max()) <= allowed

    # Reading

    def _demanded(self, source: Plugged) -> _Read:
        """Return an adapter from memory or from the disk, before anything that is read ahead."""
        self._urgent = source.name
        try:
            return self._thread.submit(self._read_now, source).result()
        finally:
            self._urgent = None

    def _read_now(self, source: Plugged) -> _Read:
        with self._lock:
            read = self._ram.get(source.name)
        return read or self._read(source, lambda: False)

    def _read(self, source: Plugged, stopped: Callable[[], bool]) -> _Read:
        began = perf_counter()
        adapter = read_adapter(source.folder, self._base, trained_on=source.trained_on, stopped=stopped)
        pairs = self._layers.kept(adapter, source.precision)
        kind = "" if source.precision == "auto" else f".{source.precision}"
        return _Read(f"{source.expert}@{adapter.card.fingerprint[:12]}{kind}", pairs, perf_counter() - began)

    def _read_ahead(self) -> None:
        """Read whatever is likelier than chance to be needed next, the likeliest first."""
        while foreseen := self._foreseen(hint := self._hint):
            source, likely = foreseen

            def stopped(source: Plugged = source, hint: Mapping[str, float] = hint) -> bool:
                if self._urgent not in (None, source.name):
                    return True
                newer = self._hint
                return newer is not hint and (self._foreseen(newer) or (None,))[0] != source

            try:
                read = self._read(source, stopped)
            except Abandoned:
                return  # whoever interrupted has work of his own in the queue
            except ZishuError as error:
                with self._lock:
                    self._refused[source.expert] = (source, error)
                return
            with self._lock:
                self._places, moves = self._places.fetch(read.weights(source), likely)
                if not moves:
                    return
                self._ram[source.name] = read
                self._follow(moves)

    def _foreseen(self, hint: Mapping[str, float]) -> tuple[Plugged, Mapping[str, float]] | None:
        """Return the likeliest adapter that has to be read, with how likely all of them are, by their names."""
        if not hint:
            return None
        sources = plugged_adapters(self._experts)
        mixed = self._chain.mixed(hint, self._answering)
        likely = {source.name: mixed.get(name, 0.0) for name, source in sources.items()}
        places = self._places  # a value: trying a decision out changes nothing
        wanted = [
            source
            for source in sources.values()
            if likely[source.name] > 1 / len(mixed)
            and source.expert not in self._refused
            and places.fetch(Weights(source.name, source.size, 0.0), likely)[1]
        ]
        return (max(wanted, key=lambda source: (likely[source.name], source.name)), likely) if wanted else None


def _failed(source: Plugged, error: RuntimeError) -> BackendUnavailable:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return BackendUnavailable(
        f"The adapter in {source.folder} cannot be put on the device: {first_line}.",
        "Lower [language_model.transformers] expert_slots or cache_megabytes.",
    )
