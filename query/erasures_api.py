"""The HTTP API of erasures: to ask for one, see how far it is, and get its certificate. In the framework's threads."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Response
from pydantic import BaseModel, ConfigDict, Field

from query.answers import FAILURES, Answer
from query.errors import Refused
from query.parameters import NoParameters, Tenant, only_known
from storage.erasure_notes import Note
from storage.erasure_selectors import BadSelector, Selector
from storage.erasures import Erasures, Held, Running

ErasureId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="Its id.")]
_KNOWN = [Depends(only_known(NoParameters))]


class AttributeSelector(BaseModel):
    """Traces of which any span, event, link, resource, scope or log record has this attribute."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    key: str
    value: str = Field(description="As text, whatever its type; of arrays and maps each text in them is compared.")


class ErasureRequest(BaseModel):
    """Whom an erasure is about: traces that any of these means are removed as a whole."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    users: list[str] = Field([], description="Users, as spans, their resources or links name them.")
    sessions: list[str] = Field([], description="Sessions, likewise.")
    traces: list[str] = Field([], description="Ids of traces, 32 hex digits each.")
    attributes: list[AttributeSelector] = Field([], description="Attributes and their values.")
    by: str = Field("", description="Who asks, for the certificate.")
    dry_run: bool = Field(False, description="Count what would be removed, and remove nothing.")


class ErasureAnswer(Answer):
    """One erasure. Whom it is about is never said again: `asked` has salted hashes."""

    id: str = Field(description="Its id.")
    state: str = Field(description="`running`, `done`, `counted` after a dry run, or `failed`.")
    stage: str = Field(description="While it runs: `waiting`, `looking`, `removing`, `checking` or `ending`.")
    round: int = Field(description="How often it has looked, from 0.")
    by: str = Field(description="Who asked.")
    asked: list[dict[str, str]] = Field(description="Kind, salt and SHA-256 of each selector.")
    dry_run: bool = Field(description="Whether it only counts.")
    begun_unix_nano: str = Field(description="When it was asked for.")
    ended_unix_nano: str = Field(description="When it ended; 0 while it runs.")
    traces: int = Field(description="Traces found.")
    rows: dict[str, int] = Field(
        description="Rows found by table, all of which go; under `quarantine`, frames of the quarantine."
    )
    waiting_for: str = Field(description="What it waits for, if that takes long.")
    error: str = Field(description="Why it failed.")
    certificate: dict[str, Any] | None = Field(description="When it is done: see docs/erase.md.")


class ErasureList(Answer):
    """Erasures."""

    erasures: list[ErasureAnswer] = Field(description="Those of the tenant, newest first, a thousand at most.")


def router(erasures: Erasures) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/api/v1/erasures", tags=["erasures"], responses=FAILURES)

    @routes.post(
        "", status_code=202, summary="Remove what is known of a user, a session or a trace", dependencies=_KNOWN
    )
    def begin(request: ErasureRequest, response: Response, tenant: Tenant = "default") -> ErasureAnswer:
        """Whole traces go, from every table, the quarantine and what waits in the log. One erasure runs at a time."""
        try:
            note = erasures.begin(tenant, list(_selectors(request)), request.by, dry_run=request.dry_run)
        except BadSelector as error:
            raise Refused(400, str(error)) from error
        except (Running, Held) as error:
            raise Refused(409, str(error)) from error
        response.headers["Location"] = f"/api/v1/erasures/{note.id}"
        return _answer(note)

    @routes.get("", summary="List the erasures", dependencies=_KNOWN)
    def listed(tenant: Tenant = "default") -> ErasureList:
        """Also those that are done, with their certificates."""
        return ErasureList(erasures=[_answer(note) for note in erasures.all(tenant)])

    @routes.get("/{erasure_id}", summary="How far an erasure is, and its certificate", dependencies=_KNOWN)
    def one(erasure_id: ErasureId, tenant: Tenant = "default") -> ErasureAnswer:
        """The certificate is there when `state` is `done`."""
        note = erasures.find(tenant, erasure_id)
        if note is None:
            raise Refused(404, f"cannot find an erasure {erasure_id}: GET /api/v1/erasures lists them")
        return _answer(note)

    return routes


def _selectors(request: ErasureRequest) -> list[Selector]:
    return [
        *(Selector("user", value) for value in request.users),
        *(Selector("session", value) for value in request.sessions),
        *(Selector("trace", value.lower()) for value in request.traces),
        *(Selector("attribute", pair.value, pair.key) for pair in request.attributes),
    ]


def _answer(note: Note) -> ErasureAnswer:
    return ErasureAnswer(
        id=note.id,
        state=note.state,
        stage=note.stage,
        round=note.round,
        by=note.by,
        asked=list(note.selectors),
        dry_run=note.dry_run,
        begun_unix_nano=str(note.begun_unix_nano),
        ended_unix_nano=str(note.ended_unix_nano),
        traces=note.traces,
        rows=note.totals(),
        waiting_for=note.waiting_for,
        error=note.error,
        certificate=note.certificate or None,
    )
