"""Packing: whole conversations into packs of constant length, best fit first, in numba and without Python objects.

Each conversation goes into the fullest pack that still has room for it, longest conversations first (best-fit
decreasing), within a random window of conversations, so that each epoch has other combinations.

One window with a capacity of 10 tokens; a letter is a token of conversation A to F:

    longest first   A 7   B 6   C 4   D 3   E 2   F 2

    A 7  fits nowhere     -> opens pack 0    AAAAAAA...
    B 6  fits nowhere     -> opens pack 1    BBBBBB....
    C 4  room 3 and 4     -> pack 1, full    BBBBBBCCCC
    D 3  room 3           -> pack 0, full    AAAAAAADDD
    E 2  fits nowhere     -> opens pack 2    EE........
    F 2  room 8           -> pack 2          EEFF......

    Packs: rows = [A, D, B, C, E, F], offsets = [0, 2, 4, 6]

No conversation is cut, and none sees another one of its pack: the batch carries where each of them begins. Then packs
get a random order.

With `varied`, conversations of nearly the same length (1/32 of an octave) are taken in random order where there are few
windows. So packs are others in each epoch also where one window holds all conversations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

# Large enough for packs that are 99.9 % full, small enough that few packs of one epoch appear again in the next one.
WINDOW_CONVERSATIONS = 1 << 13
# With so many windows, two epochs have few packs in common already.
_MANY_WINDOWS = 4
# Coarser, more packs are new in each epoch (1/4 of an octave: 97 %), and packs are up to 0.2 % less full. At 1/32 they
# are at most 0.04 % less full, and 75 to 100 % of them are new.
_BUCKET_BITS = 5
_NUM_SHIFTS = 64  # of the borders between buckets


@dataclass(frozen=True, kw_only=True)
class Packs:
    """Rows grouped into packs: pack p holds `rows[offsets[p]:offsets[p + 1]]`.

    rows: int64[conversations], every row once. offsets: int64[packs + 1].
    """

    rows: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> np.ndarray:
        """The rows of a pack, int64."""
        return self.rows[self.offsets[number] : self.offsets[number + 1]]


def pack(
    lengths: np.ndarray,
    *,
    capacity: int,
    rng: np.random.Generator,
    window: int = WINDOW_CONVERSATIONS,
    varied: bool = False,
) -> Packs:
    """Pack every conversation exactly once.

    lengths: integer[conversations], tokens, each from 1 to `capacity`. rng: decides windows and the order of packs.
    varied: other packs with each rng, also within one window.

    Raises ValueError for a length outside 1..capacity, naming the row.
    """
    lengths = np.ascontiguousarray(lengths, dtype=np.int64)
    outside = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if len(outside):
        row = int(outside[0])
        raise ValueError(f"row {row} has {lengths[row]} tokens, but a pack holds 1 to {capacity}")
    order = rng.permutation(len(lengths))
    num_windows = max(1, -(-len(lengths) // window))
    edges = np.linspace(0, len(lengths), num_windows + 1).astype(np.int64)
    if varied and num_windows < _MANY_WINDOWS:
        keys = _near_keys(capacity, int(rng.integers(_NUM_SHIFTS)))
    else:
        keys = np.arange(capacity, -1, -1)
    pack_of, num_packs = _pack_windows(lengths[order], edges, capacity, keys)
    # Packs are numbered in random order; a stable sort by number then groups the rows.
    numbers = rng.permutation(num_packs)[pack_of]
    offsets, slots = _group(numbers, num_packs)
    return Packs(rows=order[slots], offsets=offsets)


def _near_keys(capacity: int, shift: int) -> np.ndarray:
    """int64[capacity + 1]: key of each length, 0 for the longest; lengths that are nearly the same share one.

    They share their exponent and leading bits after a multiplication, which moves the borders. All numbers are exact
    in float64, so all hosts agree.
    """
    scaled = np.arange(capacity, -1, -1) * (_NUM_SHIFTS + shift)
    lowest = np.maximum(np.frexp(scaled.astype(np.float64))[1] - 1 - _BUCKET_BITS, 0)
    buckets = np.stack((lowest, scaled >> lowest))
    is_next = (np.diff(buckets, axis=1) != 0).any(axis=0)
    return np.concatenate(([0], np.cumsum(is_next)))[::-1].astype(np.int64)


@numba.njit(cache=True)
def _pack_windows(
    lengths: np.ndarray, edges: np.ndarray, capacity: int, keys: np.ndarray
) -> tuple[np.ndarray, int]:  # pragma: no cover
    """Pack number of each conversation, int64[n], and the number of packs. keys: by length, 0 for what is first."""
    pack_of = np.empty(len(lengths), dtype=np.int64)
    num_packs = 0
    for w in range(len(edges) - 1):
        start, end = edges[w], edges[w + 1]
        order = _by_key(lengths[start:end], keys)
        num_packs = _best_fit(lengths[start:end], order, capacity, num_packs, pack_of[start:end])
    return pack_of, num_packs


@numba.njit(cache=True)
def _by_key(lengths: np.ndarray, keys: np.ndarray) -> np.ndarray:  # pragma: no cover
    """int64[n]: conversations by their key, the longest first, otherwise in their order (a counting sort)."""
    starts = np.zeros(keys[0] + 2, dtype=np.int64)
    for length in lengths:
        starts[keys[length] + 1] += 1
    for i in range(1, len(starts)):
        starts[i] += starts[i - 1]
    order = np.empty(len(lengths), dtype=np.int64)
    for i in range(len(lengths)):
        key = keys[lengths[i]]
        order[starts[key]] = i
        starts[key] += 1
    return order


@numba.njit(cache=True)
def _best_fit(
    lengths: np.ndarray, order: np.ndarray, capacity: int, first_pack: int, pack_of: np.ndarray
) -> int:  # pragma: no cover
    """Pack one window in an order. Open packs are kept in a stack per remaining room; a bitmap finds the smallest room
    that fits.
    """
    count = len(lengths)
    num_words = (capacity >> 6) + 1
    occupied = np.zeros(num_words, dtype=np.uint64)
    top = np.full(capacity + 1, -1, dtype=np.int64)  # room -> open pack, -1 for none
    below = np.empty(count, dtype=np.int64)  # pack -> next open pack with the same room
    one = np.uint64(1)
    num_open = 0
    for position in range(count):
        item = order[position]
        length = lengths[item]
        word = length >> 6
        bits = occupied[word] >> np.uint64(length & 63) << np.uint64(length & 63)
        while bits == 0 and word + 1 < num_words:
            word += 1
            bits = occupied[word]
        if bits == 0:
            pack, room = num_open, capacity
            num_open += 1
        else:
            lowest = bits & (~bits + one)
            bit = 0
            while lowest > one:
                lowest >>= one
                bit += 1
            room = (word << 6) + bit
            pack = top[room]
            top[room] = below[pack]
            if top[room] < 0:
                occupied[word] &= ~(one << np.uint64(bit))
        pack_of[item] = first_pack + pack
        room -= length
        if room > 0:
            below[pack] = top[room]
            top[room] = pack
            occupied[room >> 6] |= one << np.uint64(room & 63)
    return first_pack + num_open


@numba.njit(cache=True)
def _group(numbers: np.ndarray, num_packs: int) -> tuple[np.ndarray, np.ndarray]:  # pragma: no cover
    """Offsets of each pack and the conversations in pack order (a counting sort)."""
    offsets = np.zeros(num_packs + 1, dtype=np.int64)
    for number in numbers:
        offsets[number + 1] += 1
    for i in range(num_packs):
        offsets[i + 1] += offsets[i]
    cursor = offsets[:-1].copy()
    slots = np.empty(len(numbers), dtype=np.int64)
    for i in range(len(numbers)):
        slots[cursor[numbers[i]]] = i
        cursor[numbers[i]] += 1
    return offsets, slots
