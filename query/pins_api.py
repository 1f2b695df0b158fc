"""The HTTP API of pins. In the framework's threads."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from query.answers import FAILURES, Answer
from query.errors import Refused
from query.parameters import NoParameters, Tenant, only_known
from storage.pins import Pin, Pins, TooManyPins

Pinnable = Literal["trace", "run", "experiment", "model", "logged_model", "prompt", "session", "agent", "user"]
WHO_CHARACTERS_MAX = 200
COMMENT_CHARACTERS_MAX = 2_000


class PinAnswer(Answer):
    """What is kept, whatever the policies say."""

    entity: str = Field(description="`trace`, or what traces belong to: `run`, `model`, `session` and so on.")
    id: str
    version: str = Field(description="Of a model, prompt or agent; empty for all of them.")
    pinned_by: str
    comment: str
    since_unix_nano: str


class PinsAnswer(Answer):
    """All pins of a tenant."""

    pins: list[PinAnswer] = Field(description="The newest first.")


class _Which(BaseModel):
    model_config = ConfigDict(extra="forbid")

    entity: Pinnable = Field(description="`trace`, or what traces belong to.")
    id: str = Field(min_length=1, max_length=1024, description="Of a trace 32 hex digits.")
    version: str = Field("", max_length=1024, description="Of a model, prompt or agent; without it all of them.")

    @model_validator(mode="after")
    def _trace_id(self) -> "_Which":
        if self.entity == "trace":
            if len(self.id) != 32 or not set(self.id) <= set("0123456789abcdefABCDEF"):
                raise ValueError(f"a trace id has 32 hex digits, and this is {self.id[:64]!r}")
            self.id = self.id.lower()
        return self


class NewPin(_Which):
    """What is to be kept."""

    pinned_by: str = Field("", max_length=WHO_CHARACTERS_MAX, description="Who pins it.")
    comment: str = Field("", max_length=COMMENT_CHARACTERS_MAX, description="Why.")


class OldPin(_Which):
    """Query parameters."""


def router(pins: Pins) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/api/v1/pins", tags=["retention"], responses=FAILURES)

    @routes.get("", summary="What is pinned", dependencies=[Depends(only_known(NoParameters))])
    def listed(tenant: Tenant = "default") -> PinsAnswer:
        """Traces that are kept whatever the policies say, by their ids or by what they belong to."""
        return PinsAnswer(pins=[_answer(pin) for pin in pins.of(tenant)])

    @routes.put("", summary="Pin a trace, or all traces of something", dependencies=[Depends(only_known(NoParameters))])
    def put(wanted: NewPin, tenant: Tenant = "default") -> PinsAnswer:
        """It is kept, skeleton and content, until the pin is taken back. What has expired before does not come back."""
        try:
            pins.put(tenant, Pin(**wanted.model_dump()))
        except TooManyPins as error:
            raise Refused(400, str(error)) from error
        return listed(tenant)

    @routes.delete("", summary="Take a pin back", status_code=204, dependencies=[Depends(only_known(OldPin))])
    def remove(which: Annotated[OldPin, Query()], tenant: Tenant = "default") -> Response:
        """The policies count again."""
        if not pins.remove(tenant, which.entity, which.id, which.version):
            said = " ".join(filter(None, (which.entity, which.id, which.version)))
            raise Refused(404, f"cannot find a pin of {said!r} of tenant {tenant!r}: GET /api/v1/pins has all")
        return Response(status_code=204)

    return routes


def _answer(pin: Pin) -> PinAnswer:
    return PinAnswer(
        entity=pin.entity,
        id=pin.id,
        version=pin.version,
        pinned_by=pin.pinned_by,
        comment=pin.comment,
        since_unix_nano=str(pin.since_unix_nano),
    )
