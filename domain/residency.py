"""Which experts' adapters lie on the device, in memory or on disk: pure decisions, over time that others measure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Place(StrEnum):
    """Where an adapter can be used from, from the fastest to the slowest."""

    DEVICE = "device"
    RAM = "ram"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Weights:
    """An adapter as something to keep.

    Attributes:
        name: What it is asked for by.
        size: Bytes that it takes.
        seconds: What it costs to fetch it from the disk once more.
        pinned: Whether it stays on the device once it is there.
    """

    name: str
    size: int
    seconds: float
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """One adapter changes its place; to `DISK` means that it is dropped."""

    name: str
    to: Place


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened so far.

    Attributes:
        hits: Uses of an adapter that was on the device.
        warm: Uses of one that was in memory.
        misses: Uses of one that had to be read from the disk.
        fetched: Adapters that were read ahead.
        wasted: Of those, how many were dropped again without having been used.
    """

    hits: int = 0
    warm: int = 0
    misses: int = 0
    fetched: int = 0
    wasted: int = 0


@dataclass(frozen=True, slots=True)
class _Held:
    """An adapter in a place, the value under which the place will let it go, and whether it was used there yet."""

    weights: Weights
    value: float
    used: bool = True


@dataclass(frozen=True, slots=True)
class Residency:
    """Two places of limited size, the device in front of memory, in front of a disk that holds everything.

    An adapter is in one place at a time. The device evicts to memory, and memory to the disk, whichever adapter has the
    lowest value by GreedyDual-Size-Frequency: L + uses * seconds / size, where L rises to the value of whatever was
    evicted last, so that what was popular long ago does not stay for ever. On the device, where every adapter takes one
    slot, the size is 1. Uses are remembered after an eviction too. Source: Cherkasova 1998, HP Labs HPL-98-69R1.

    Attributes:
        slots: Adapters that the device holds at the same time, at least 1.
        size: Bytes that adapters may take in memory.
        counts: What happened so far.
    """

    slots: int
    size: int
    counts: Counts = Counts()
    _device: tuple[_Held, ...] = ()
    _ram: tuple[_Held, ...] = ()
    _uses: Mapping[str, int] = field(default_factory=dict)
    _device_age: float = 0.0
    _ram_age: float = 0.0

    def where(self, name: str) -> Place:
        """Return the place of an adapter."""
        if _find(self._device, name):
            return Place.DEVICE
        return Place.RAM if _find(self._ram, name) else Place.DISK

    def names(self, place: Place) -> frozenset[str]:
        """Return what lies on the device or in memory."""
        return frozenset(held.weights.name for held in (self._device if place is Place.DEVICE else self._ram))

    def use(self, wanted: Weights, likely: Mapping[str, float] | None = None) -> tuple["Residency", tuple[Move, ...]]:
        """Bring an adapter onto the device to answer with; also return the moves that this takes, in their order.

        A hit moves nothing. Pinned adapters on the device are not evicted, and never take its last slot: where they
        would, the least valuable of them counts as an ordinary one.

        Args:
            wanted: The adapter.
            likely: How likely each expert is the next one; those above chance are evicted last.
        """
        uses = {**self._uses, wanted.name: self._uses.get(wanted.name, 0) + 1}
        after, moves, counts = replace(self, _uses=uses), list[Move](), self.counts
        if self.where(wanted.name) is Place.DEVICE:
            return after._hit(wanted), ()
        warm = self.where(wanted.name) is Place.RAM
        found = replace(counts, warm=counts.warm + 1) if warm else replace(counts, misses=counts.misses + 1)
        after = replace(after, counts=found, _ram=_without(self._ram, wanted.name))
        if len(after._device) >= self.slots:
            victim = _least(after._evictable(likely or {}))
            after, moves = after._demoted(victim)
        newcomer = after._valued(wanted, after._device_age, 1)
        return replace(after, _device=(*after._device, newcomer)), (*moves, Move(wanted.name, Place.DEVICE))

    def fetch(self, wanted: Weights, likely: Mapping[str, float]) -> tuple["Residency", tuple[Move, ...]]:
        """Read an adapter ahead into memory; without any move where that does not pay.

        It pays only while it takes the place of adapters that are less likely to be wanted next.

        Args:
            wanted: The adapter.
            likely: How likely each expert is the next one; those that are missing are not.
        """
        if self.where(wanted.name) is not Place.DISK or wanted.size > self.size:
            return self, ()
        chance = likely.get(wanted.name, 0.0)
        victims = sorted(
            (held for held in self._ram if likely.get(held.weights.name, 0.0) < chance),
            key=lambda held: (likely.get(held.weights.name, 0.0), held.value, held.weights.name),
        )
        after = self
        moves: list[Move] = []
        while after._taken + wanted.size > self.size:
            if not victims:
                return self, ()
            after, dropped = after._dropped(victims.pop(0))
            moves.append(dropped)
        counts = replace(after.counts, fetched=after.counts.fetched + 1)
        newcomer = replace(after._valued(wanted, after._ram_age, wanted.size), used=False)
        return replace(after, _ram=(*after._ram, newcomer), counts=counts), (*moves, Move(wanted.name, Place.RAM))

    def forget(self, name: str) -> "Residency":
        """Return the places without an adapter that is gone or broken."""
        return replace(self, _device=_without(self._device, name), _ram=_without(self._ram, name))

    def _valued(self, weights: Weights, age: float, size: int) -> _Held:
        """Return an adapter with its value in a place; one that was never used is worth the use that is hoped for."""
        uses = max(1, self._uses.get(weights.name, 0))
        return _Held(weights, age + uses * weights.seconds / max(1, size))

    @property
    def _taken(self) -> int:
        return sum(held.weights.size for held in self._ram)

    def _evictable(self, likely: Mapping[str, float]) -> tuple[_Held, ...]:
        ordinary = tuple(held for held in self._device if not held.weights.pinned) or self._device
        unlikely = (held for held in ordinary if likely.get(held.weights.name, 0.0) <= 1 / len(likely or ordinary))
        return tuple(unlikely) or ordinary

    def _hit(self, wanted: Weights) -> "Residency":
        used = self._valued(wanted, self._device_age, 1)
        device = tuple(used if held.weights.name == wanted.name else held for held in self._device)
        return replace(self, _device=device, counts=replace(self.counts, hits=self.counts.hits + 1))

    def _demoted(self, victim: _Held) -> tuple["Residency", list[Move]]:
        """Take a victim off the device; into memory, if it is worth more there than what it would push out."""
        weights, moves = victim.weights, list[Move]()
        after = replace(
            self, _device=_without(self._device, weights.name), _device_age=max(self._device_age, victim.value)
        )
        entering = self._valued(weights, self._ram_age, weights.size)
        while after._taken + weights.size > self.size:
            least = _least((*after._ram, entering))
            if least is entering:
                return replace(after, _ram_age=max(after._ram_age, entering.value)), [
                    *moves,
                    Move(weights.name, Place.DISK),
                ]
            after, dropped = after._dropped(least)
            moves.append(dropped)
        return replace(after, _ram=(*after._ram, entering)), [*moves, Move(weights.name, Place.RAM)]

    def _dropped(self, victim: _Held) -> tuple["Residency", Move]:
        counts = replace(self.counts, wasted=self.counts.wasted + (not victim.used))
        after = replace(
            self,
            counts=counts,
            _ram=_without(self._ram, victim.weights.name),
            _ram_age=max(self._ram_age, victim.value),
        )
        return after, Move(victim.weights.name, Place.DISK)


def _find(held: Iterable[_Held], name: str) -> _Held | None:
    return next((one for one in held if one.weights.name == name), None)


def _without(held: tuple[_Held, ...], name: str) -> tuple[_Held, ...]:
    return tuple(one for one in held if one.weights.name != name)


def _least(held: Iterable[_Held]) -> _Held:
    """Return the least valuable; a tie goes by the alphabet, not by chance."""
    return min(held, key=lambda one: (one.value, one.weights.name))


@dataclass(frozen=True, slots=True)
class MarkovPredictor:
    """Foresees the next expert from which one followed which, a first-order chain with additive smoothing.

    Attributes:
        smoothing: What is added to every count, so that what never happened stays possible (Lidstone's law).
        trust: Weight of the chain beside the router, from 0 to 1, in a linear opinion pool (Stone 1961).
        followed: How often the second expert of a pair came right after the first.
    """

    smoothing: float = 0.5
    trust: float = 0.5
    followed: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def after(self, before: str, now: str) -> "MarkovPredictor":
        """Return the predictor once `now` has answered right after `before`."""
        pair = (before, now)
        return replace(self, followed={**self.followed, pair: self.followed.get(pair, 0) + 1})

    def chances(self, current: str, names: Iterable[str]) -> Mapping[str, float]:
        """Return how likely each of the names answers next; they add up to 1 unless there are none."""
        counted = {name: self.followed.get((current, name), 0) + self.smoothing for name in sorted(set(names))}
        total = sum(counted.values())
        return {name: count / total for name, count in counted.items()}

    def mixed(self, posteriors: Mapping[str, float], current: str) -> Mapping[str, float]:
        """Return the router's posteriors mixed with the chain's chances; without posteriors, the chain's alone.

        Args:
            posteriors: How likely each expert is, by the router; need not add up to 1.
            current: Who answers now.
        """
        seen = {name for pair in self.followed for name in pair}
        chances = self.chances(current, seen | posteriors.keys() | {current})
        total = sum(posteriors.values())
        if total <= 0:
            return chances
        return {
            name: self.trust * chance + (1 - self.trust) * (posteriors.get(name, 0.0) / total)
            for name, chance in chances.items()
        }
