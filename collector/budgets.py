"""Keeps tenants, and the whole store, within their budgets of bytes on disk: warns, shortens, samples, refuses.

Every few seconds the store is asked what each tenant has. What was acknowledged since, and what still lies in the log,
is estimated by the tenant's own ratio of bytes stored to bytes sent, so that a fast sender does not overshoot: requests
are held against it one by one, on the receivers' threads. A thread of its own measures and changes the steps; what they
are follows from the store, so that nothing has to survive a crash.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from collector.admission import NotKept
from collector.budget_rules import BUDGETS_MAX, STEPS, Budget, Rules
from collector.status import BudgetSpent
from storage.errors import StoreError

LOOK_S = 1.0
CHANGES_KEPT = 200
WHOLE = ""
"""Stands for the whole store where a tenant stands else."""
SHORTEN, SAMPLE, REFUSE = (STEPS.index(name) for name in ("shorten", "sample", "refuse"))

USABLE = 0.95
"""Of a budget. What a tenant has is its share of tables: it moves by some percent when others send or parts merge."""
_RATIO_FIRST = 1.0
"""Before anything was measured: small parts hardly compress."""
_RATIO_MIN, _RATIO_MAX = 0.01, 1.5
_RATIO_SAFETY = 1.25
_RATIO_BYTES_MIN = 1 << 20
"""Loads of fewer bytes say nothing of the ratio."""

logger = logging.getLogger(__name__)


class Log(Protocol):
    """What the budgets need of the WAL."""

    def appended(self, tenant: str) -> int:
        """Bytes that a tenant sent since the start."""

    def traffic(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """The same of all tenants, and bytes of each that are not loaded."""


class Stored(NamedTuple):
    """Bytes on disk, by tenant and of all tables."""

    tenants: Mapping[str, float]
    whole: float


class Change(NamedTuple):
    """A step that was taken."""

    unix_nano: int
    tenant: str
    before: str
    after: str
    share: float


@dataclass(slots=True)
class Use:
    """What is known of a tenant, or of the whole. Bytes `stored` and the log's figures are of the last measurement.

    `loaded` bytes of the log had come to `loaded_stored` bytes when the ratio was worked out last.
    """

    stored: float = 0.0
    held: int = 0
    appended: int = 0
    loaded: int | None = None
    loaded_stored: float = 0.0
    ratio: float = _RATIO_FIRST
    step: int = 0
    since_unix_nano: int = 0
    share: float = 0.0
    requests: Counter[str] = field(default_factory=Counter)
    """By what was done with them: shorten, sample, refuse."""


class Budgets:
    """`start` and `stop` it; `allow` is for admission.

    `shorten` gets the tenants whose content is to be shortened and the length; `sample` the tenants whose ordinary
    traces are sampled and what part of them is kept.
    """

    def __init__(
        self,
        rules: Rules,
        log: Log,
        measure: Callable[[], Stored],
        *,
        shorten: Callable[[Iterable[str], int], None],
        sample: Callable[[Mapping[str, float]], None],
        every_s: float = 10.0,
    ) -> None:
        self.rules = rules
        self.measured_unix_nano = 0
        self._log, self._measure, self._every_s = log, measure, every_s
        self._shorten, self._sample = shorten, sample
        self._applied: tuple[frozenset[str], frozenset[str]] = frozenset(), frozenset()
        self._uses: dict[str, Use] = {WHOLE: Use()}
        self._changes: deque[Change] = deque(maxlen=CHANGES_KEPT)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="budgets", daemon=True)

    def start(self) -> None:
        """Measure once, if the store answers, and go on to."""
        if not self.rules.tenants and self.rules.whole is None:
            return
        self._look(measure=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(60)

    def allow(self, tenant: str, size: int) -> None:
        """Whether a request of so many bytes may be taken. Raises BudgetSpent or NotKept."""
        for whose in (tenant, WHOLE):
            budget = self.budget(whose)
            if budget is None:
                continue
            with self._lock:
                used = self._used(whose) + self._known(tenant).ratio * size
                if self._known(whose).step < REFUSE and used < USABLE * budget.bytes * self.rules.shares[-1]:
                    continue
                use = self._known(tenant)
                use.requests["refuse"] += 1
                if len(self._uses) < BUDGETS_MAX:
                    self._uses[tenant] = use
            what = f"tenant {tenant!r} has" if whose else "the store has"
            text = (
                f"cannot store more: {what} {used / budget.bytes:.0%} of its {budget.bytes} bytes, "
                f"and {USABLE:.0%} may be full; let something expire, erase something, or raise the budget"
            )
            raise BudgetSpent(text) if budget.refuse == "retryable" else NotKept(text)
        with self._lock:
            use = self._known(tenant)
            for name in STEPS[SHORTEN : max(use.step, self._uses[WHOLE].step) + 1]:
                use.requests[name] += 1

    def budget(self, tenant: str) -> Budget | None:
        """That of a tenant, or of the whole."""
        return self.rules.of(tenant) if tenant else self.rules.whole

    def figures(self) -> list[tuple[str, Budget, float, float, Use]]:
        """Of the whole and of each tenant with a budget: it, bytes used, those of them that are estimates, the rest."""
        with self._lock:
            return [
                (tenant, budget, self._used(tenant), self._used(tenant) - use.stored, use)
                for tenant, use in sorted(self._uses.items())
                if (budget := self.budget(tenant)) is not None
            ]

    def changes(self) -> Sequence[Change]:
        """The newest steps, the newest first."""
        with self._lock:
            return list(reversed(self._changes))

    # --- under the lock ---

    def _known(self, tenant: str) -> Use:
        """Of a tenant that nothing was measured of yet, nothing is kept: anybody may make up names."""
        return self._uses.get(tenant) or Use()

    def _used(self, tenant: str) -> float:
        """Bytes that the tenant has when all that was acknowledged is loaded."""
        if tenant == WHOLE:
            return self._uses[WHOLE].stored + sum(self._coming(each) for each in self._uses if each != WHOLE)
        return self._known(tenant).stored + self._coming(tenant)

    def _coming(self, tenant: str) -> float:
        use = self._known(tenant)
        return min(_RATIO_MAX, use.ratio * _RATIO_SAFETY) * (
            use.held + max(0, self._log.appended(tenant) - use.appended)
        )

    # --- the thread ---

    def _loop(self) -> None:
        measure_s = time.monotonic() + self._every_s
        while not self._stop.wait(LOOK_S):
            due = time.monotonic() >= measure_s
            self._look(measure=due)
            if due:
                measure_s = time.monotonic() + self._every_s

    def _look(self, *, measure: bool) -> None:
        try:
            if measure:
                self._note(*self._log.traffic(), self._measure())
            self._step()
        except StoreError as error:
            logger.warning("cannot measure what tenants have, will try again: %s", error)
        except Exception:
            logger.exception("cannot look after the budgets, will try again")

    def _note(self, appended: Mapping[str, int], held: Mapping[str, int], stored: Stored) -> None:
        """The log's figures are from before the store's: what was loaded in between counts twice, for a while."""
        with self._lock:
            for tenant in {*self._uses, *appended, *held, *stored.tenants} - {WHOLE}:
                use = self._uses.setdefault(tenant, Use())
                now, loaded = stored.tenants.get(tenant, 0.0), appended.get(tenant, 0) - held.get(tenant, 0)
                if use.loaded is None:
                    use.loaded, use.loaded_stored = loaded, now
                elif (more := loaded - use.loaded) >= _RATIO_BYTES_MIN:
                    # Fewer bytes than before say that something expired or was merged, and nothing of what came.
                    if now > use.loaded_stored:
                        ratio = min(_RATIO_MAX, max(_RATIO_MIN, (now - use.loaded_stored) / more))
                        use.ratio = ratio if use.ratio == _RATIO_FIRST else (use.ratio + ratio) / 2
                    use.loaded, use.loaded_stored = loaded, now
                use.stored, use.held, use.appended = now, max(0, held.get(tenant, 0)), appended.get(tenant, 0)
            self._uses[WHOLE].stored = stored.whole
            self.measured_unix_nano = time.time_ns()

    def _step(self) -> None:
        """Take the steps that are due, and say so."""
        with self._lock:
            taken = [change for tenant in list(self._uses) if (change := self._stepped(tenant))]
            self._changes.extend(taken)
            whole = self._uses[WHOLE].step
            at = {tenant: max(use.step, whole) for tenant, use in self._uses.items() if tenant != WHOLE}
        for change in taken:
            whose = f"tenant {change.tenant!r}" if change.tenant else "the whole store"
            logger.log(
                logging.WARNING if STEPS.index(change.after) > STEPS.index(change.before) else logging.INFO,
                "budget of %s: %s, after %s, at %.0f %% of it", whose, change.after, change.before, change.share * 100,
            )  # fmt: skip
        short = frozenset(tenant for tenant, step in at.items() if step >= SHORTEN)
        sampled = frozenset(tenant for tenant, step in at.items() if step >= SAMPLE)
        if short != self._applied[0]:
            self._shorten(short, self.rules.long_bytes)
        if sampled != self._applied[1]:
            self._sample(dict.fromkeys(sampled, self.rules.keep))
        self._applied = short, sampled

    def _stepped(self, tenant: str) -> Change | None:
        budget, use = self.budget(tenant), self._uses[tenant]
        if budget is None:
            return None
        use.share = self._used(tenant) / (USABLE * budget.bytes)
        step = self.rules.step(use.share, use.step)
        if step == use.step:
            return None
        change = Change(time.time_ns(), tenant, STEPS[use.step], STEPS[step], use.share)
        use.step, use.since_unix_nano = step, change.unix_nano
        return change
