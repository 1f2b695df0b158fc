"""The HTTP API that says how the registry is doing. Runs in the framework's threads; never asks the registry itself."""

from fastapi import APIRouter
from pydantic import Field

from query.answers import Answer
from query.registry import Registry


class RegistryState(Answer):
    """Whether there is a registry, and whether it answers."""

    configured: bool
    uri: str | None = Field(description="Without what may be secret in it.", examples=["http://mlflow:5000"])
    unavailable: str | None = Field(description="Why it does not answer, or not in time; null if it does.")
    remembered: int = Field(description="Things that were looked up and are remembered.")
    waiting: int = Field(description="Things that are to be looked up.")
    writes_waiting: int = Field(description="Tags that are to be written.")


def router(registry: Registry | None) -> APIRouter:
    """The route."""
    routes = APIRouter(prefix="/api/v1", tags=["registry"])

    @routes.get("/registry", summary="Does the registry answer?")
    def state() -> RegistryState:
        """Nothing else depends on it: without the registry, answers lack what it would add, and say so."""
        if registry is None:
            return RegistryState(
                configured=False, uri=None, unavailable=None, remembered=0, waiting=0, writes_waiting=0
            )
        return RegistryState(configured=True, **registry.state())

    return routes
