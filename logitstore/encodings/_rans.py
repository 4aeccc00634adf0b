"""Entropy coder of small integers (SPEC E16): interleaved rANS with fixed tables, decoded many lanes at once.

Asymmetric numeral systems (Duda 2013) in the range form with several states over one stream of words (Giesen
2014). Tables are constants and contexts are known before a symbol is read, so that numpy decodes one symbol of
every lane of every record of a batch at a time. All numbers are integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError

Integers = NDArray[np.int64]
Words = NDArray[np.uint16]
BITS = 12  # frequencies of a table sum to 1 << BITS
LOW = 1 << 16  # states lie from here to 1 << 32; every lane begins with this state where it is written


@dataclass(frozen=True, eq=False)
class Tables:
    """Frequencies of symbols, a row for each table; rows sum to 4096.

    Attributes:
        frequencies: (K, A) integers.
    """

    frequencies: Integers

    @cached_property
    def starts(self) -> Integers:
        """(K, A) sums of the frequencies before each symbol."""
        return np.asarray(self.frequencies.cumsum(1) - self.frequencies)

    @cached_property
    def slots(self) -> NDArray[np.uint32]:
        """(K · 4096,) symbol << 24 | frequency - 1 << 12 | slot - start, of every slot of every table."""
        count, symbols = self.frequencies.shape
        symbol = np.repeat(np.tile(np.arange(symbols), count), self.frequencies.reshape(-1))
        table = np.arange(count).repeat(1 << BITS)
        slot = np.tile(np.arange(1 << BITS), count)
        frequency = self.frequencies[table, symbol]
        return np.asarray(symbol << 24 | frequency - 1 << 12 | slot - self.starts[table, symbol], np.uint32)

    @cached_property
    def costs(self) -> NDArray[np.float32]:
        """(K, A) bits of each symbol."""
        with np.errstate(divide="ignore"):
            return np.asarray(BITS - np.log2(self.frequencies), np.float32)

    def check(self, where: str) -> None:
        """Raise ``FormatError`` unless every row sums to 4096."""
        if self.frequencies.ndim != 2 or not (self.frequencies.sum(1) == 1 << BITS).all():
            raise FormatError(f"{where}: frequencies do not sum to {1 << BITS} (SPEC E16)")


class LaneDecoder:
    """States of the lanes of several records, each reading the words of its record.

    Args:
        words: words of all records.
        begin: (B,) index of each record's first word.
        end: (B,) index behind its last word.
        lanes: (B,) lanes of each record; their states come first among its words.
    """

    def __init__(self, words: Words, begin: Integers, end: Integers, lanes: Integers) -> None:
        self._words, self._end = words.astype(np.uint32), end
        self.record = np.arange(len(lanes)).repeat(lanes)
        self.first = np.cumsum(lanes) - lanes
        self.number = np.arange(len(self.record)) - self.first[self.record]
        at = begin[self.record] + 2 * self.number
        if (begin + 2 * lanes > end).any():
            raise FormatError("a piece of codes is shorter than its states (SPEC E16)")
        self.state = self._words[at] << 16 | self._words[at + 1]
        self.at = begin + 2 * lanes

    def one_each(self, tables: Tables, rows: Integers) -> Integers:
        """Return one symbol of the first lane of each of the first records, as many as there are table rows."""
        lane = self.first[: len(rows)]
        entry = tables.slots[(rows << BITS) | (self.state[lane] & 0xFFF)]
        state = ((entry >> 12 & 0xFFF) + 1) * (self.state[lane] >> BITS) + (entry & 0xFFF)
        short = np.flatnonzero(state < LOW)
        if len(short):
            state[short] = state[short] << 16 | self._words.take(self.at[short], mode="clip")
            self.at[short] += 1
        self.state[lane] = state
        return np.asarray(entry >> 24, np.int64)

    def all(
        self, tables: Tables, rows: NDArray[np.intp], begin: Integers, count: Integers
    ) -> NDArray[np.uint8]:
        """Return the symbols of all lanes: symbol i of a record comes from its lane i mod the number of its lanes.

        Args:
            tables: tables of the symbols.
            rows: (S,) table of every symbol, record after record.
            begin: (B,) index of each record's first symbol.
            count: (B,) its symbols.
        """
        out = np.zeros(len(rows), np.uint8)
        lanes = np.bincount(self.record, minlength=len(begin))
        steps = -(-(count[self.record] - self.number) // lanes[self.record])  # symbols of each lane
        place = begin[self.record] + self.number
        done = 0
        for until in np.unique(steps):
            if until <= done:
                continue
            live = np.flatnonzero(steps > done)
            self._run(
                tables, rows, out, live, place[live] + done * lanes[self.record[live]], int(until) - done
            )
            done = int(until)
        return out

    def _run(
        self,
        tables: Tables,
        rows: NDArray[np.intp],
        out: NDArray[np.uint8],
        live: Integers,
        place: Integers,
        steps: int,
    ) -> None:
        """Decode ``steps`` symbols of the lanes ``live``, the first at ``place`` of the output."""
        slots, words = tables.slots, self._words
        record = self.record[live]
        stride = np.bincount(self.record)[record]
        last = np.flatnonzero(np.append(np.diff(record) != 0, True))  # of each record's lanes
        own = np.zeros(len(last), np.int64)
        index = np.arange(len(last)).repeat(np.diff(last, prepend=-1))
        at, state = self.at[record[last]], self.state[live]
        for _ in range(steps):
            entry = slots[(rows[place] << BITS) | (state & 0xFFF)]
            state = ((entry >> 12 & 0xFFF) + 1) * (state >> BITS) + (entry & 0xFFF)
            out[place] = entry >> 24
            place = place + stride
            short = state < LOW
            read = np.cumsum(short)
            own[1:] = read[last[:-1]]  # words that lanes of earlier records read
            lanes = np.flatnonzero(short)
            which = index[lanes]
            word = words.take(at[which] + read[lanes] - 1 - own[which], mode="clip")
            state[lanes] = state[lanes] << 16 | word
            at += np.diff(read[last], prepend=0)
        self.state[live], self.at[record[last]] = state, at

    def finish(self, extra: Integers) -> None:
        """Raise ``FormatError`` unless all states are the first and all words but ``extra`` are read."""
        if (self.at + extra != self._end).any() or (self.state != LOW).any():
            raise FormatError("codes do not end where their piece ends (SPEC E16)")


class LaneEncoder:
    """States of one record's lanes; symbols are written in the opposite order of reading."""

    def __init__(self, lanes: int) -> None:
        self._state = np.full(lanes, LOW, np.uint64)
        self._words: list[NDArray[np.uint16]] = []

    def put(self, tables: Tables, rows: Integers, symbols: Integers) -> None:
        """Write one symbol of the first lanes, as many as there are rows."""
        n = len(rows)
        frequency = tables.frequencies[rows, symbols].astype(np.uint64)
        state = self._state[:n]
        full = state >= frequency << np.uint64(32 - BITS)
        self._words.append((state[full] & np.uint64(0xFFFF)).astype(np.uint16))
        state = np.where(full, state >> np.uint64(16), state)
        start = tables.starts[rows, symbols].astype(np.uint64)
        self._state[:n] = (state // frequency << np.uint64(BITS)) + state % frequency + start

    def put_all(self, tables: Tables, rows: Integers, symbols: Integers) -> None:
        """Write all symbols, symbol i with lane i mod the number of lanes."""
        lanes = len(self._state)
        for first in range((max(len(rows), 1) - 1) // lanes * lanes, -1, -lanes):
            self.put(tables, rows[first : first + lanes], symbols[first : first + lanes])

    def words(self) -> Words:
        """Return the states, high word first, and the words in the order of reading."""
        states = self._state.astype(np.uint32)
        heads = np.stack([states >> 16, states & 0xFFFF], 1).reshape(-1).astype(np.uint16)
        return np.concatenate([heads, *reversed(self._words)])
