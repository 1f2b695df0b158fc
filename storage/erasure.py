"""One erasure: every trace of which a span says a user, session or attribute is removed for good.

It goes in rounds. A round waits until what was acknowledged before it is loaded, looks for traces, removes all that is
known of them, and lets the settling end what it had read of them. The round that finds nothing is the last: then the
parts that were replaced have to be gone from disk.

Every step may be done twice: after a crash an erasure goes on with the round it was in.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from storage.engine import Engine
from storage.erasure_certificate import FRAMES, Checked
from storage.erasure_notes import ENDING, Note, Notes
from storage.erasure_parts import ErasureParts
from storage.erasure_rows import ALL, BY_TRACE, SAID, SETTLED, ErasureRows
from storage.erasure_selectors import PAGE_TRACES_MAX, Selector
from storage.errors import StoreError
from storage.vocabulary import Vocabulary

WORK = ("erasing",)
ROUNDS_MAX = 30
"""Whoever goes on sending spans of a user keeps the erasure of that user from an end."""
POLL_S = 0.2
NOTED_S = 1.0
"""What an erasure waits for is noted when it waits for so long."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a look through the quarantine came to: `frames` of `scanned` say so, or hold such traces.

    `trace_ids` are those of these frames.
    """

    scanned: int
    frames: int
    trace_ids: frozenset[bytes]


class Unloaded(Protocol):
    """The log and the quarantine of this process."""

    def remains(self) -> str:
        """What is left of spans that nobody can read, as a sentence; '' if nothing is."""
        ...

    def waiting(self) -> frozenset[str]:
        """Names of what holds spans that are acknowledged and not loaded."""
        ...

    def sweep(
        self,
        tenant: str,
        selectors: Sequence[Selector],
        among: Callable[[Iterable[bytes]], set[bytes]],
        *,
        remove: bool,
    ) -> Swept:
        """Look for quarantined frames that a selector means, or that hold a trace which `among` gives back."""
        ...


class Stopped(Exception):
    """The program is stopping, or another process does the erasures now."""


@dataclass(frozen=True, slots=True)
class Site:
    """What an erasure stands on.

    `settled` comes back when the settling has ended what it was at. `held` says what keeps parts that no erasure
    reaches, or ''. Nothing is loaded while somebody holds `loading`. `goes_on` raises Stopped.
    """

    engine: Engine
    vocabulary: Vocabulary
    notes: Notes
    settled: Callable[[], None]
    unloaded: Unloaded | None
    held: Callable[[], str]
    loading: threading.Lock
    quiet_s: float
    goes_on: Callable[[], None]


class Erasure:
    """One of them, from the round it is in to its end."""

    def __init__(self, site: Site, note: Note, selectors: Sequence[Selector]) -> None:
        self.note = note
        self.checked = Checked()
        self._site = site
        self._selectors = selectors
        self._rows = ErasureRows(site.engine, note.id, note.tenant)
        self._parts = ErasureParts(site.engine, ALL)

    def run(self) -> Note:
        """The note of its end: done, counted or failed. It is not written yet. Raises StoreError, and Stopped."""
        if not self.note.dry_run:
            self._parts.hasten()
        while self._look() and not self.note.dry_run and self.note.round < ROUNDS_MAX:
            self._remove()
            self._pause(self._site.quiet_s)
            self._write(round=self.note.round + 1)
        if self.note.dry_run:
            self._write(stage=ENDING, outcome="counted")
        elif self.note.round == ROUNDS_MAX:
            error = f"spans of them still arrive after {ROUNDS_MAX} looks: stop who sends them, and ask again"
            self._write(stage=ENDING, outcome="failed", error=error)
        else:
            self._check()
            self._write(stage=ENDING, outcome="done", checked=asdict(self.checked))
        return self.end()

    def end(self) -> Note:
        """Forget whom it was about. After a crash in it that may be gone, and this alone is left to do."""
        self._rows.forget()
        self._until_gone(WORK)
        if not self.note.dry_run:
            self._parts.take_back()
        return replace(self.note, state=self.note.outcome)

    def _look(self) -> bool:
        """Find and count; whether there is anything to do in this round."""
        note = self._write(stage="waiting")
        began_before = len(note.removed) > note.round
        self._until_loaded()
        self._write(stage="looking")
        self._rows.find(self._selectors, self._site.vocabulary, note.round, self._site.goes_on)
        self._rows.note_late(note.round)
        frames = self._look_through_quarantine()
        self._until(self._replicated)
        counts = {FRAMES: frames} if frames else {}
        days, parts = set(note.days), 0
        for table in BY_TRACE:
            self._site.goes_on()
            found = self._rows.count(table, note.round)
            if found.rows:
                counts[table] = found.rows
                days.update(found.days)
                parts += found.parts
        self._write(
            days=sorted(days),
            parts=note.parts + (0 if began_before else parts),
            traces=note.traces if began_before and note.round else self._rows.noted_in_all(note.round),
            removed=self.note.counted(counts).removed,
        )
        full = self._rows.noted(note.round) >= PAGE_TRACES_MAX
        return not note.round or full or any(self.note.removed[note.round].values())

    def _until_loaded(self) -> None:
        """Wait for what was acknowledged before now."""
        unloaded = self._site.unloaded
        if unloaded is None:
            return
        before = unloaded.waiting()

        def waits_for() -> str:
            left = len(before & unloaded.waiting())
            return f"{left} segments of the log are not loaded" if left else ""

        self.checked.loaded_unix_nano = time.time_ns()
        self._until(waits_for)

    def _look_through_quarantine(self) -> int:
        """How many frames are to go. Those that say so bring more traces, which other frames may hold, too."""
        unloaded = self._site.unloaded
        if unloaded is None:
            return 0
        while True:
            self._site.goes_on()
            swept = unloaded.sweep(self.note.tenant, self._selectors, self._rows.among, remove=False)
            new = swept.trace_ids - self._rows.among(swept.trace_ids)
            if not new:
                break
            self._rows.note(self.note.round, new)
        self._write(frames_scanned=max(swept.scanned, self.note.frames_scanned or 0))
        return swept.frames

    def _remove(self) -> None:
        """Remove what this round found. Rows of a table only if it has any: a mutation looks at every part."""
        self._write(stage="removing")
        self._rows.note_origins_and_names(self.note.round)
        if self._site.unloaded is not None:
            self._site.unloaded.sweep(self.note.tenant, self._selectors, self._rows.among, remove=True)
        self._remove_rows(SAID)
        self._site.settled()
        self._remove_rows(SETTLED)
        counts = dict(self.note.removed[self.note.round])
        with self._site.loading:
            if orphans := self._rows.note_orphans():
                counts["origins"] = orphans
                self._until(self._replicated)
                self._rows.delete_orphans()
        for table, rows in self._rows.unlinked().items():
            if rows:
                counts[table if table in ("seen", "pins") else f"{table}, older states"] = rows
                self._until(self._replicated)
                self._rows.delete_unlinked(table)
        self._until(self._rewritten)
        self._write(removed=self.note.counted(counts).removed)

    def _remove_rows(self, tables: Iterable[str]) -> None:
        for table in tables:
            self._site.goes_on()
            if self._rows.count(table, self.note.round).rows:
                self._rows.delete(table, self.note.round)
        self._until(self._rewritten)

    def _check(self) -> None:
        """Come back when nothing is left anywhere."""
        self._write(stage="checking")
        self._until(self._site.held)
        self._until(self._detached)
        self._until_gone(ALL)
        for table in BY_TRACE:
            self._site.goes_on()
            left = sum(self._rows.count(table, each).rows for each in range(self.note.round + 1))
            self.checked.rows[table] = left
        if any(self.checked.rows.values()):
            raise StoreError("spans of an erased trace came while that was checked")  # the round is done once more
        self.checked.nodes = self._parts.nodes()
        self.checked.system_logs = self._parts.in_system_logs([one.text for one in self._selectors])

    # What it waits for: a sentence, or '' for nothing

    def _replicated(self) -> str:
        return "" if self._rows.replicated() else "other nodes have not heard of it yet"

    def _rewritten(self) -> str:
        for table in ALL:
            running, reason = self._parts.running(table)
            if running:
                return f"{table} is being rewritten" + (f", which fails: {reason[:300]}" if reason else "")
        return ""

    def _detached(self) -> str:
        names = self._parts.detached()
        return f"parts are detached: attach or remove {', '.join(names)}" if names else ""

    def _until_gone(self, tables: Collection[str]) -> None:
        """Wait for the parts that are replaced now; those that merges replace later hold nothing of this."""
        replaced = {part for part in self._parts.replaced() if part[0] in tables}
        self.checked.parts_gone += len(replaced)

        def left() -> str:
            count = len(replaced & self._parts.replaced())
            if count:
                self._parts.clean_up()
            return f"{count} replaced parts are still on disk" if count else ""

        self._until(left)

    def _until(self, waits_for: Callable[[], str]) -> None:
        """Come back when that is nothing."""
        began_s, said = time.monotonic(), ""
        while reason := waits_for():
            if reason != said and time.monotonic() - began_s > NOTED_S:
                said = reason
                self._write(waiting_for=reason)
            self._pause(POLL_S)
        if said:
            self._write(waiting_for="")

    def _pause(self, seconds: float) -> None:
        deadline_s = time.monotonic() + seconds
        self._site.goes_on()
        while (left_s := deadline_s - time.monotonic()) > 0:
            time.sleep(min(left_s, POLL_S))
            self._site.goes_on()

    def _write(self, **changes: object) -> Note:
        self.note = replace(self.note, **changes)  # type: ignore[arg-type]
        self._site.notes.write(self.note)
        return self.note
