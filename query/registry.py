"""The connector to MLflow: what it knows of runs, model versions and the rest, and tags that are written back.

Nobody who asks ever waits. `describe` gives what is remembered, and has it looked up again behind the scenes, on
threads of the registry's own: MLflow is imported there, by the first of them, for that takes seconds. While MLflow is
away or slow, what is remembered is still given, and every answer says so.

MLflow's own client is used, so any tracking URI that it takes will do. How long it waits for an answer, and how often
it tries again, it reads from the environment (MLFLOW_HTTP_REQUEST_TIMEOUT, …_MAX_RETRIES): spanhouse.py sets them.
"""
# ruff: noqa: PLC0415

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from query.registry_lookup import Found, Link, Lookup, Missing, kind_of, pages_of
from query.registry_messages import cleaned, shown, why

ENTITIES = ("run", "experiment", "model", "logged_model", "prompt")
TRACES_TAG = "spanhouse.traces"
"""The tag that says where the traces of a run or a model's version are."""
QUEUE_MAX = 1_000
WATCHED_MAX = 2_000
WRITES_MAX = 100

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the registry is asked, in seconds."""

    fresh_s: float = 60
    """What is younger is not looked up again."""
    missing_fresh_s: float = 15
    """The same of what MLflow did not have: it may well come after its first spans."""
    keep_s: float = 86_400
    """What nobody could look up again for so long is forgotten."""
    watch_s: float = 300
    """What traces are linked to is looked up again this often, unasked: a model may be registered later."""
    slow_s: float = 2
    """A call that takes longer makes the registry slow, and the answers say so."""
    backoff_s: float = 1
    backoff_s_max: float = 60
    write_wait_s: float = 8
    """How long who writes a tag waits to hear what became of it."""
    write_for_s: float = 600
    """How long a tag is tried to be written."""


@dataclass(slots=True)
class _Entry:
    """What was found at last: None if the registry has no such thing. `refused`: it has, but not for us."""

    found: Found | None
    refused: str
    unix_nano: int
    asked_s: float


@dataclass(slots=True)
class _Write:
    entity: str
    id: str
    version: str
    tags: Mapping[str, str]
    until_s: float
    done: threading.Event = field(default_factory=threading.Event)
    problem: str | None = None


@dataclass(slots=True)
class _Watched:
    """When traces were last linked to a thing, and when it was last looked up, by the monotonic clock."""

    linked_s: float
    asked_s: float = -math.inf


class Registry:
    """What MLflow knows, remembered: the newest `entries_max` things that were asked for.

    `write`: tags may be written. `public_url`: the address of this API as people reach it; with it, and `write`, runs
    and model versions that traces are linked to get the tag TRACES_TAG.
    """

    def __init__(
        self,
        tracking_uri: str,
        registry_uri: str | None = None,
        *,
        write: bool = False,
        public_url: str = "",
        entries_max: int = 10_000,
        workers: int = 2,
        pace: Pace = Pace(),
    ) -> None:
        self._uris = (tracking_uri, registry_uri)
        self._write = write
        self._public_url = public_url.rstrip("/")
        self.tells_where = write and bool(public_url)
        """Whether what traces are linked to gets the tag that says so."""
        self._entries_max = entries_max
        self._pace = pace
        self.on_found: Callable[[Link, tuple[Link, ...]], None] = lambda key, implied: None
        """Told what a watched thing implies whenever it was looked up, on a thread of the registry's."""
        self._lock = threading.Condition()
        self._entries: OrderedDict[Link, _Entry] = OrderedDict()
        self._queue: OrderedDict[Link, None] = OrderedDict()
        self._doing: set[Link] = set()
        self._watched: dict[Link, _Watched] = {}
        self._writes: list[_Write] = []
        self._calls: dict[int, float] = {}
        self._trouble = ""
        self._backoff_s = 0.0
        self._retry_s = 0.0
        self._stopped = False
        self._threads = [threading.Thread(target=self._work, name=f"registry-{n}", daemon=True) for n in range(workers)]

    def start(self) -> None:
        """Start to look things up."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 2) -> None:
        """Stop, without waiting for an MLflow that does not answer."""
        with self._lock:
            self._stopped = True
            if self._writes:
                _log.warning("%d tags were not written to the registry", len(self._writes))
            self._lock.notify_all()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))

    # Asking

    def describe(self, entity: str, id_: str, version: str = "") -> dict[str, Any] | None:
        """What MLflow knows of a thing; None if it has no such thing. Never waits.

        {"pending": true} until it was looked up, {"unavailable": reason} if it cannot be; else its members as
        docs/registry.md has them, with `as_of_unix_nano`, and with `unavailable` if that is not up to date.
        """
        if entity not in ENTITIES or not id_:
            return None
        key, now = (entity, id_, version), time.monotonic()
        with self._lock:
            entry = self._remembered(key, now)
            stale = entry is None or now - entry.asked_s > self._fresh_s(entry)
            if stale:
                self._enqueue(key)
            trouble = self._reason(now)
        if entry is None:
            return {"unavailable": trouble} if trouble else {"pending": True}
        if entry.refused:
            return {"unavailable": entry.refused}
        if entry.found is None:
            return None
        answer = {**entry.found.answer, "as_of_unix_nano": str(entry.unix_nano)}
        return answer | {"unavailable": trouble} if stale and trouble else answer

    def implied(self, entity: str, id_: str, version: str = "") -> tuple[Link, ...] | None:
        """What a trace that is linked to this thing is linked to besides; None if that is not known (yet)."""
        with self._lock:
            entry = self._remembered((entity, id_, version), time.monotonic())
        return None if entry is None or entry.found is None else entry.found.implied

    def watch(self, entity: str, id_: str, version: str = "") -> None:
        """Look a thing up now and then, for traces are linked to it. `on_found` is told."""
        if entity not in ENTITIES or not id_:
            return
        key, now = (entity, id_, version), time.monotonic()
        with self._lock:
            if watched := self._watched.get(key):
                watched.linked_s = now
                return
            if len(self._watched) >= WATCHED_MAX:
                del self._watched[min(self._watched, key=lambda one: self._watched[one].linked_s)]
            self._watched[key] = _Watched(now)
            self._enqueue(key)

    def state(self) -> dict[str, Any]:
        """Whether the registry answers, and what is waiting."""
        with self._lock:
            trouble = self._reason(time.monotonic())
            return {
                "uri": shown(self._uris[0]),
                "unavailable": trouble or None,
                "remembered": len(self._entries),
                "waiting": len(self._queue),
                "writes_waiting": len(self._writes),
            }

    # Writing

    def write_tags(self, entity: str, id_: str, version: str, tags: Mapping[str, str]) -> str | None:
        """Write tags to a run or a model's version. None if that was done, else why not (yet).

        Waits a few seconds. What cannot be written then is tried for ten minutes more, as long as this program runs.
        """
        if not self._write:
            return "cannot write to the registry: it is only read; start with --registry-write"
        if not _takes_tags((entity, id_, version)):
            return f"cannot write to this {entity} of the registry: tags go to a run or a model's version"
        write = _Write(entity, id_, version, tags, time.monotonic() + self._pace.write_for_s)
        with self._lock:
            if len(self._writes) >= WRITES_MAX:
                return f"cannot write to the registry now: {WRITES_MAX} others wait already"
            self._writes.append(write)
            self._lock.notify()
        if write.done.wait(self._pace.write_wait_s):
            return write.problem
        with self._lock:
            reason = self._reason(time.monotonic()) or "the registry is slow"
        return f"not written yet: {reason}; it is tried for {self._pace.write_for_s:.0f} s in all"

    # The threads

    def _work(self) -> None:
        client = lookup = None
        while (job := self._next()) is not None:
            try:
                if lookup is None:  # which takes seconds, none of them the registry's
                    client, lookup = self._connect()
                with self._lock:
                    self._calls[threading.get_ident()] = time.monotonic()
                if isinstance(job, _Write):
                    self._apply(client, job)
                else:
                    self._look_up(client, lookup, job)
            except Exception as error:
                self._failed(job, error)
            else:
                self._answered()
            finally:
                with self._lock:
                    self._calls.pop(threading.get_ident(), None)
                    if not isinstance(job, _Write):
                        self._doing.discard(job)

    def _next(self) -> "_Write | Link | None":
        """What to do next, waiting for it; None when it is time to stop."""
        with self._lock:
            while not self._stopped:
                now = time.monotonic()
                wait_s = self._retry_s - now
                if wait_s <= 0:
                    if self._writes:
                        return self._writes.pop(0)
                    if self._queue:
                        return self._taken(self._queue.popitem(last=False)[0], now)
                    if due := self._due(now):
                        return self._taken(due, now)
                    wait_s = 1.0  # no more than one thing a second is looked up unasked
                self._lock.wait(wait_s)
            return None

    def _due(self, now: float) -> Link | None:
        """The watched thing that was looked up longest ago, if that is long ago."""
        key = min(self._watched, key=lambda one: self._watched[one].asked_s, default=None)
        if key is None or now - self._watched[key].asked_s < self._pace.watch_s:
            return None
        return key

    def _taken(self, key: Link, now: float) -> Link:
        self._doing.add(key)
        if watched := self._watched.get(key):
            watched.asked_s = now
        return key

    def _connect(self) -> tuple[Any, Lookup]:
        from mlflow.tracking import MlflowClient

        tracking_uri, registry_uri = self._uris
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=registry_uri)
        return client, Lookup(client, pages_of(tracking_uri, _databricks_host))

    def _look_up(self, client: Any, lookup: Lookup, key: Link) -> None:
        found, refused = None, ""
        try:
            found = lookup(*key)
        except Missing:
            pass
        except Exception as error:
            if kind_of(error) != "refused":
                raise
            refused = f"the registry does not show {key[0]} {key[1]} to us: {cleaned(error)}"
        with self._lock:
            self._entries[key] = _Entry(found, refused, time.time_ns(), time.monotonic())
            self._entries.move_to_end(key)
            while len(self._entries) > self._entries_max:
                self._entries.popitem(last=False)
            watched = key in self._watched
        if found is None or not watched:
            return
        self._tell(key, found.implied)
        self._say_where(client, key, found)

    def _tell(self, key: Link, implied: tuple[Link, ...]) -> None:
        try:
            self.on_found(key, implied)
        except Exception:  # no fault of the registry's
            _log.exception("cannot make the links that %s %s implies", key[0], key[1])

    def _say_where(self, client: Any, key: Link, found: Found) -> None:
        """Write where the traces of a thing are, unless that is written there already."""
        if not (self.tells_where and _takes_tags(key)):
            return
        url = traces_url(self._public_url, *key)
        if found.answer["tags"].get(TRACES_TAG) == url:
            return
        try:
            _set_tags(client, key, {TRACES_TAG: url})
        except Exception as error:
            if kind_of(error) == "away":
                raise
            _log.warning("cannot tag %s %s in the registry: %s", key[0], key[1], cleaned(error))

    def _apply(self, client: Any, write: _Write) -> None:
        key = (write.entity, write.id, write.version)
        try:
            _set_tags(client, key, write.tags)
        except Exception as error:
            if kind_of(error) == "away":
                raise
            write.problem = (
                f"cannot write to {write.entity} {write.id} {write.version}".rstrip() + f": {cleaned(error)}"
            )
        write.done.set()
        with self._lock:
            self._enqueue(key)

    def _failed(self, job: "_Write | Link", error: Exception) -> None:
        """The registry is away. Whoever wants to know something asks again; what is to be written stays."""
        reason = why(error)
        with self._lock:
            self._backoff_s = min(self._backoff_s * 2 or self._pace.backoff_s, self._pace.backoff_s_max)
            self._retry_s = time.monotonic() + self._backoff_s
            if not self._trouble:
                _log.warning("the registry at %s is away: %s", shown(self._uris[0]), reason)
            self._trouble = f"the registry at {shown(self._uris[0])} is away: {reason}"
            if isinstance(job, _Write):
                if time.monotonic() < job.until_s:
                    self._writes.append(job)
                else:
                    _log.warning("cannot write to %s %s %s in the registry: given up", job.entity, job.id, job.version)
            elif watched := self._watched.get(job):
                watched.asked_s = -math.inf

    def _answered(self) -> None:
        with self._lock:
            if self._trouble:
                _log.info("the registry at %s answers again", shown(self._uris[0]))
            self._trouble, self._backoff_s, self._retry_s = "", 0.0, 0.0
            self._lock.notify()

    # Under the lock

    def _remembered(self, key: Link, now: float) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is None or now - entry.asked_s > self._pace.keep_s:
            return None
        self._entries.move_to_end(key)
        return entry

    def _fresh_s(self, entry: _Entry) -> float:
        return self._pace.fresh_s if entry.found else self._pace.missing_fresh_s

    def _enqueue(self, key: Link) -> None:
        if len(self._queue) < QUEUE_MAX and key not in self._doing:  # past it, who still wants it asks again
            self._queue[key] = None
            self._lock.notify()

    def _reason(self, now: float) -> str:
        """Why nothing can be looked up now; '' if it can."""
        if self._trouble:
            return self._trouble
        longest_s = max((now - started for started in self._calls.values()), default=0)
        if longest_s > self._pace.slow_s:
            return f"the registry at {shown(self._uris[0])} is slow: no answer for {longest_s:.0f} s"
        return ""


def traces_url(public_url: str, entity: str, id_: str, version: str) -> str:
    """Where this API says which traces a run or a model's version has."""
    one = quote(id_, safe="")
    path = f"runs/{one}" if entity == "run" else f"models/{one}/versions/{quote(version, safe='')}"
    return f"{public_url}/api/v1/{path}/traces"


def _takes_tags(key: Link) -> bool:
    entity, _, version = key
    return entity == "run" or (entity == "model" and version.isdecimal())


def _set_tags(client: Any, key: Link, tags: Mapping[str, str]) -> None:
    entity, id_, version = key
    for name, value in tags.items():
        if entity == "run":
            client.set_tag(id_, name, value)
        else:
            client.set_model_version_tag(id_, version, name, value)


def _databricks_host(uri: str) -> str:
    from mlflow.utils.databricks_utils import get_databricks_host_creds

    return str(get_databricks_host_creds(uri).host)  # type: ignore[no-untyped-call]
