"""The HTTP API of snapshots, by which `spanhouse copy` reads a store that is in use. In the framework's threads."""

from fastapi import APIRouter
from pydantic import Field

from query.answers import Answer
from query.errors import Refused
from storage.snapshots import NoSuchSnapshot, Snapshot, Snapshots, TooManySnapshots


class SnapshotAnswer(Answer):
    """One snapshot."""

    name: str = Field(description="Its name, and that of its directory below `shadow` of the store.")
    created: str = Field(description="When it was made, as ISO 8601.")


class SnapshotList(Answer):
    """All snapshots."""

    snapshots: list[SnapshotAnswer] = Field(description="Those there are, oldest first.")


def router(snapshots: Snapshots | None) -> APIRouter:
    """The routes; None where the store is not in this process."""
    routes = APIRouter(prefix="/api/v1/snapshots", tags=["snapshots"])

    def here() -> Snapshots:
        if snapshots is None:
            raise Refused(409, "cannot make a snapshot: the store is on ClickHouse servers, which have BACKUP")
        return snapshots

    @routes.post("", status_code=201, summary="Make a snapshot of the store")
    def take() -> SnapshotAnswer:
        """Hard links of all parts, below `shadow` of the store: no copy, but parts that are merged later stay on disk
        until the snapshot is removed."""
        try:
            return _answer(here().take())
        except TooManySnapshots as error:
            raise Refused(409, str(error)) from error

    @routes.get("", summary="List the snapshots")
    def listed() -> SnapshotList:
        """Snapshots that were not removed."""
        return SnapshotList(snapshots=[_answer(each) for each in (snapshots.all() if snapshots else [])])

    @routes.delete("/{name}", status_code=204, summary="Remove a snapshot")
    def drop(name: str) -> None:
        """The parts that only it still has are gone then."""
        try:
            here().drop(name)
        except NoSuchSnapshot as error:
            raise Refused(404, str(error)) from error

    return routes


def _answer(snapshot: Snapshot) -> SnapshotAnswer:
    return SnapshotAnswer(name=snapshot.name, created=snapshot.created)
