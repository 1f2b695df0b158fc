"""Liveness and readiness, of every role. Liveness answers on the event loop, also while all threads are busy."""

from collections.abc import Callable
from importlib.metadata import version

from fastapi import APIRouter, FastAPI, Response

from query import answers
from query.errors import RETRY_AFTER, error_response, install


def create_collector_app(ready: Callable[[], dict[str, str]]) -> FastAPI:
    """The HTTP API of a collector that reads nothing. Other parts add their own routers to it.

    `ready` gives what keeps it from taking spans. The store is not among that: it takes them while that is away.
    """
    app = FastAPI(
        title="Spanhouse collector",
        version=version("spanhouse"),
        description="Keeps what it receives in its log and brings it to the store. Spans are read at a query service.",
    )
    install(app)
    app.include_router(router(ready))
    return app


def router(ready: Callable[[], dict[str, str]]) -> APIRouter:
    """`ready` gives the parts that are not ready, by name, with the reason."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="Is the process alive?", response_model=answers.Health)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        "/readyz",
        summary="Do all parts answer?",
        response_model=answers.Readiness,
        responses={503: {"model": answers.ErrorAnswer, "description": "`error.parts` has the reason of each."}},
    )
    def readyz() -> Response:
        parts = ready()
        if parts:
            reasons = "; ".join(f"{part}: {reason}" for part, reason in parts.items())
            return error_response(503, f"not ready: {reasons}", headers=RETRY_AFTER, more={"parts": parts})
        return answers.json_response({"status": "ready"})

    return router
