"""What the registry knows of a run, an experiment, a model, a logged model or a prompt, by MLflow's own client.

Functions of a client, on the registry's threads; each makes a few calls, and raises what the client raises. MLflow
itself is not imported here. Answers are plain JSON of a bounded size.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlsplit, urlunsplit

from query.plain import json_double

ENTRIES_MAX = 100
"""Metrics, parameters and tags of one thing, each."""
TEXT_CHARS_MAX = 500
VERSIONS_MAX = 10
"""Registered versions that are named for a run or a logged model."""

Link = tuple[str, str, str]
"""Entity, id, version."""

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
_OURS_ALREADY = frozenset(("mlflow.log-model.history", "mlflow.modelVersions", "mlflow.prompt.text"))
"""Tags that repeat what is answered anyway, at length."""
_DATABRICKS_PAGES = "/ml"
_LATER = ("logged_model", "prompt")
"""What servers of MLflow 2 have no endpoint for."""

_MISSING_CODES = frozenset(
    (
        "RESOURCE_DOES_NOT_EXIST",
        "NOT_FOUND",
        "INVALID_PARAMETER_VALUE",
        "BAD_REQUEST",
        "NOT_IMPLEMENTED",
        "FEATURE_DISABLED",
    )
)
_REFUSED_CODES = frozenset(("PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"))


def kind_of(error: Exception) -> Literal["missing", "no endpoint", "refused", "away"]:
    """What an error of the client means: no such thing, none for us, or nobody there who could tell.

    Source of the codes: mlflow/exceptions.py.
    """
    code = getattr(error, "error_code", None)
    if code in _MISSING_CODES or isinstance(error, NotImplementedError):
        return "missing"
    if code == "ENDPOINT_NOT_FOUND":
        return "no endpoint"
    return "refused" if code in _REFUSED_CODES else "away"


class Missing(Exception):
    """The registry answers, and has no such thing."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the registry knows of a thing, and what a trace that is linked to it is linked to besides."""

    answer: dict[str, Any]
    implied: tuple[Link, ...] = ()


class Lookup:
    """Looks things up with one client. `pages` is where MLflow's pages are, '' where nobody knows."""

    def __init__(self, client: Any, pages: str) -> None:
        self._client = client
        self._pages = pages
        self._kinds: dict[str, Callable[[str, str], Found]] = {
            "run": self._run,
            "experiment": self._experiment,
            "model": self._model,
            "logged_model": self._logged_model,
            "prompt": self._prompt,
        }

    def __call__(self, entity: str, id_: str, version: str) -> Found:
        """Raises Missing, or what the client raises when it cannot ask."""
        look = self._kinds.get(entity)
        if look is None or not id_:
            raise Missing
        try:
            return look(id_, version)
        except Exception as error:
            kind = kind_of(error)
            if kind == "missing" or (kind == "no endpoint" and entity in _LATER):
                raise Missing from error
            raise

    def _run(self, run_id: str, _: str) -> Found:
        run = self._client.get_run(_checked(run_id))
        info, data = run.info, run.data
        versions = self._versions(f"run_id = '{run_id}'")
        outputs = getattr(run, "outputs", None)
        models = [output.model_id for output in getattr(outputs, "model_outputs", None) or ()]
        answer = {
            "name": info.run_name or data.tags.get("mlflow.runName"),
            "status": info.status,
            "start_time_unix_nano": _nano(info.start_time),
            "end_time_unix_nano": _nano(info.end_time),
            "experiment": self._experiment_name(info.experiment_id),
            "metrics": _metrics(data.metrics),
            "params": _texts(data.params),
            "tags": _texts(data.tags),
            "model_versions": versions,
            "logged_models": models[:VERSIONS_MAX],
            "url": self._url("experiments", info.experiment_id, "runs", run_id),
        }
        names = [one["name"] for one in versions]
        # Of several versions of one model that a run made, nobody can tell which one its traces are of.
        made = [("model", one["name"], one["version"]) for one in versions if names.count(one["name"]) == 1]
        return Found(answer, (("experiment", str(info.experiment_id), ""), *made))

    def _experiment(self, experiment_id: str, _: str) -> Found:
        experiment = self._client.get_experiment(_checked(experiment_id))
        answer = {
            "name": experiment.name,
            "status": experiment.lifecycle_stage,
            "tags": _texts(experiment.tags),
            "url": self._url("experiments", experiment_id),
        }
        return Found(answer)

    def _model(self, name: str, version: str) -> Found:
        if not version:
            return self._registered(name)
        by_number = version.isdecimal()
        found = (
            self._client.get_model_version(name, version)
            if by_number
            else self._client.get_model_version_by_alias(name, version)
        )
        run = self._or_none(lambda: self._client.get_run(found.run_id)) if found.run_id else None
        model_id = _logged_model_id(found.source)
        answer = {
            **_version(found),
            "description": _text(found.description),
            "tags": _texts(found.tags),
            "source": _without_secrets(found.source or ""),
            "run": run and {"id": found.run_id, "name": run.info.run_name, "status": run.info.status},
            "metrics": _metrics(run.data.metrics) if run else {},
            "logged_model": model_id,
            "url": self._model_url(name, str(found.version)),
        }
        return Found(answer)

    def _registered(self, name: str) -> Found:
        model = self._client.get_registered_model(name)
        answer = {
            "name": model.name,
            "description": _text(model.description),
            "tags": _texts(model.tags),
            "aliases": {alias: str(version) for alias, version in list(model.aliases.items())[:ENTRIES_MAX]},
            "latest_version": max((str(one.version) for one in model.latest_versions), key=_numeric, default=None),
            "url": self._model_url(name),
        }
        return Found(answer)

    def _logged_model(self, model_id: str, _: str) -> Found:
        model = self._client.get_logged_model(_checked(model_id))
        registered = _registered_versions(model.tags.get("mlflow.modelVersions"))
        versions = (
            [each for pair in registered if (each := self._version_or_none(*pair))]
            if registered
            else self._versions(f"source_path = 'models:/{model_id}'")
        )
        answer = {
            "name": model.name,
            "status": str(getattr(model.status, "value", model.status)),
            "experiment": self._experiment_name(model.experiment_id),
            "run_id": model.source_run_id or None,
            "metrics": _metrics({one.key: one.value for one in model.metrics or ()}),
            "params": _texts(model.params),
            "tags": _texts(model.tags),
            "model_versions": versions,
            "url": self._url("experiments", model.experiment_id, "models", model_id),
        }
        implied: list[Link] = [("model", one["name"], one["version"]) for one in versions]
        if model.source_run_id:
            implied.append(("run", model.source_run_id, ""))
        return Found(answer, (("experiment", str(model.experiment_id), ""), *implied))

    def _prompt(self, name: str, version: str) -> Found:
        client = self._client
        found = client.get_prompt_version(name, version) if version else client.get_prompt(name)
        if found is None:
            raise Missing
        answer = {
            "name": found.name,
            "version": str(found.version) if version else None,
            "aliases": sorted(getattr(found, "aliases", None) or ()),
            "description": _text(getattr(found, "commit_message", None) or getattr(found, "description", None)),
            "tags": _texts(found.tags),
            "url": self._url("prompts", name),
        }
        return Found(answer)

    # What several need

    def _versions(self, condition: str) -> list[dict[str, Any]]:
        """Registered versions by a condition. A search does not give their aliases, so each is asked for."""
        found = self._or_none(lambda: self._client.search_model_versions(condition, max_results=VERSIONS_MAX)) or []
        return [each for one in found if (each := self._version_or_none(one.name, str(one.version)))]

    def _version_or_none(self, name: str, version: str) -> dict[str, Any] | None:
        found = self._or_none(lambda: self._client.get_model_version(name, version))
        return found and _version(found)

    def _experiment_name(self, experiment_id: str) -> dict[str, Any]:
        found = self._or_none(lambda: self._client.get_experiment(experiment_id))
        return {"id": str(experiment_id), "name": found and found.name}

    def _or_none(self, call: Callable[[], Any]) -> Any:
        """What the call gives; None if the registry has no such thing, no such function, or keeps it to itself."""
        try:
            return call()
        except Exception as error:
            if kind_of(error) == "away":
                raise
            return None

    def _url(self, *path: str) -> str | None:
        """The page of a thing; None where nobody knows where pages are."""
        return "/".join([self._pages, *(quote(str(part), safe="") for part in path)]) if self._pages else None

    def _model_url(self, name: str, version: str = "") -> str | None:
        if self._pages.endswith(_DATABRICKS_PAGES) and name.count(".") == 2:  # of Unity Catalog
            path = [*name.split("."), *(("version", version) if version else ())]
            return self._pages.removesuffix(_DATABRICKS_PAGES) + "/explore/data/models/" + "/".join(map(quote, path))
        return self._url("models", name, *(("versions", version) if version else ()))


def pages_of(uri: str, databricks_host: Callable[[str], str]) -> str:
    """Where the pages of a tracking server are, without a final slash; '' where a URI does not say it."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", "")) + "/#"
    if uri == "databricks" or parts.scheme == "databricks":
        return databricks_host(uri).rstrip("/") + _DATABRICKS_PAGES
    return ""


def _checked(id_: str) -> str:
    """An id that may stand in a condition, or in a path."""
    if not _ID.fullmatch(id_):
        raise Missing
    return id_


def _version(found: Any) -> dict[str, Any]:
    """A registered version in short. Stage "None" is none."""
    stage = getattr(found, "current_stage", None)
    return {
        "name": found.name,
        "version": str(found.version),
        "status": found.status,
        "stage": None if stage in (None, "", "None") else stage,
        "aliases": sorted(getattr(found, "aliases", None) or ()),
    }


def _registered_versions(tag: str | None) -> list[tuple[str, str]]:
    """Names and versions of the tag mlflow.modelVersions, a JSON list of {"name", "version"}."""
    try:
        listed = json.loads(tag or "[]")
        return [(str(one["name"]), str(one["version"])) for one in listed][-VERSIONS_MAX:]
    except (ValueError, TypeError, KeyError):
        return []


def _logged_model_id(source: str | None) -> str | None:
    match = re.fullmatch(r"models:/(m-[A-Za-z0-9-]{1,100})", source or "")
    return match and match[1]


def _without_secrets(uri: str) -> str:
    """A URI without the user and the query, where keys to a store may stand."""
    parts = urlsplit(uri)
    return _text(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))) or ""


def _nano(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else str(milliseconds * 1_000_000)


def _metrics(metrics: Mapping[str, float]) -> dict[str, Any]:
    return {_cut(key): json_double(value) for key, value in _first(metrics.items())}


def _texts(texts: Mapping[str, str] | None) -> dict[str, str]:
    kept = ((key, value) for key, value in (texts or {}).items() if key not in _OURS_ALREADY)
    return {_cut(key): _cut(value) for key, value in _first(kept)}


def _first(pairs: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return sorted(pairs)[:ENTRIES_MAX]


def _text(text: str | None) -> str | None:
    return _cut(text) if text else None


def _cut(text: Any) -> str:
    words = str(text)
    return words if len(words) <= TEXT_CHARS_MAX else words[: TEXT_CHARS_MAX - 1] + "…"


def _numeric(version: str) -> tuple[int, str]:
    return (int(version) if version.isdecimal() else 0, version)
