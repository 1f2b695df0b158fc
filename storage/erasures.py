"""The erasures of a store, one at a time, on a thread of their own.

Where several processes share a store, the one that holds the lease works on what any of them noted.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace

from storage.engine import Engine, yield_to_others
from storage.erasure import Erasure, Site, Stopped, Unloaded
from storage.erasure_certificate import Checked, certificate
from storage.erasure_notes import ENDING, Note, Notes
from storage.erasure_rows import ErasureRows
from storage.erasure_selectors import SELECTORS_MAX, BadSelector, Selector
from storage.errors import StoreError
from storage.lease import Lease
from storage.vocabulary import Vocabulary

BY_CHARACTERS_MAX = 200
RETRY_S = 3.0
LOOK_S = 3.0
"""How often one that works on nothing looks whether there is something."""
QUIET_S, QUIET_SHARED_S = 2.0, 30.0
"""Between two looks. Other processes may write what they made of a trace for so long after its spans are gone."""

logger = logging.getLogger(__name__)


class Running(StoreError):
    """Another erasure runs."""


class Held(StoreError):
    """Something keeps spans where no erasure reaches them. The text says what, and the way out."""


class Erasures:
    """Notes erasures from any thread, and does them from `start` to `stop`.

    `settled` comes back when the settling has ended what it was at. `unloaded` is None where no spans are received.
    `holders` names what keeps parts beside the store, a sentence each.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        settled: Callable[[], None],
        *,
        unloaded: Unloaded | None = None,
        holders: Callable[[], list[str]] = list,
    ) -> None:
        self._engine = engine
        self._unloaded, self._holders = unloaded, holders
        self._notes = Notes(engine)
        self._lease = Lease(engine, "erasures") if engine.shared else None
        self._beginning, self._loading = threading.Lock(), threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="erasures", daemon=True)
        quiet_s = QUIET_SHARED_S if engine.shared else QUIET_S
        self._site = Site(
            engine, vocabulary, self._notes, settled, unloaded, self._held, self._loading, quiet_s, self._goes_on
        )

    def gated(self, load: Callable[..., None]) -> Callable[..., None]:
        """The same load, which waits while origins that nobody uses are told from those that somebody does."""

        def gated(*arguments: object, **named: object) -> None:
            with self._loading:
                load(*arguments, **named)

        return gated

    def start(self) -> None:
        """Begin to work; an erasure that was cut short goes on."""
        self._thread.start()

    def stop(self, timeout_s: float = 30) -> None:
        """End after the step in hand. What is not finished goes on after the next start."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("cannot stop the erasures within %.1f s: a step is still running", timeout_s)

    def begin(self, tenant: str, selectors: Sequence[Selector], by: str = "", *, dry_run: bool = False) -> Note:
        """Note an erasure, to be done soon. Raises BadSelector, Running, Held, StoreUnavailable."""
        if not selectors:
            raise BadSelector("cannot erase: say whom, by a user, a session, a trace or an attribute")
        if len(selectors) > SELECTORS_MAX:
            raise BadSelector(f"cannot erase by {len(selectors)} selectors at once: {SELECTORS_MAX} are the most")
        if len(by) > BY_CHARACTERS_MAX or not by.isprintable():
            raise BadSelector(f"cannot note who asks: it is to be {BY_CHARACTERS_MAX} printable characters at most")
        with self._beginning:
            if (running := self._notes.running()) is not None:
                which = running.id if running.tenant == tenant else "of another tenant"
                raise Running(f"cannot erase: the erasure {which} is running; ask again when it is done")
            if reason := self._held():
                raise Held(f"cannot erase: {reason}")
            note = Note(uuid.uuid4().hex, tenant, by, [one.hashed() for one in selectors], time.time_ns(), dry_run)
            self._notes.begin(note, selectors)
        self._wake.set()
        return note

    def all(self, tenant: str) -> list[Note]:
        """Those of a tenant, newest first."""
        return self._notes.of_tenant(tenant)

    def find(self, tenant: str, id: str) -> Note | None:
        """One of a tenant's."""
        return self._notes.find(tenant, id)

    def _held(self) -> str:
        remains = self._unloaded.remains() if self._unloaded else ""
        return "; ".join([*self._holders(), *([remains] if remains else [])])

    # The thread

    def _run(self) -> None:
        yield_to_others()
        while not self._stop.is_set():
            worked = False
            try:
                if self._lease is None or self._lease.held():
                    worked = self._work()
            except Stopped:
                continue
            except StoreError as error:
                logger.warning("cannot erase now, will try again: %s", error)
                self._stop.wait(RETRY_S)
                continue
            except Exception:
                logger.exception("cannot erase now, will try again")
                self._stop.wait(RETRY_S)
                continue
            if not worked:
                self._wake.wait(LOOK_S)
                self._wake.clear()
        if self._lease is not None:
            self._lease.release()

    def _work(self) -> bool:
        """Do the erasure that is noted; whether there was one."""
        note = self._notes.running()
        if note is None:
            for left in self._notes.left_behind():
                ErasureRows(self._engine, left, "").forget()
            return False
        selectors = self._notes.selectors(note.id)
        erasure = Erasure(self._site, note, selectors)
        if not selectors and note.stage != ENDING:
            lost = "what it was about is not in the store any more: ask again"
            self._end(replace(note, state="failed", error=lost))
            return True
        ended = erasure.end() if note.stage == ENDING else erasure.run()
        ended = replace(ended, ended_unix_nano=time.time_ns())
        if ended.state == "done":
            ended = replace(ended, certificate=certificate(ended, Checked(**ended.checked)))
        self._end(ended)
        return True

    def _end(self, note: Note) -> None:
        ended = replace(note, stage="", waiting_for="", ended_unix_nano=note.ended_unix_nano or time.time_ns())
        self._notes.write(ended)
        logger.info("erasure %s is %s", ended.id, ended.state)

    def _goes_on(self) -> None:
        if self._stop.is_set() or (self._lease is not None and not self._lease.held()):
            raise Stopped
