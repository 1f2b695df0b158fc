"""When a store is full, by how it grew: pure arithmetic on sizes that were noted day by day."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

DAYS = 7
"""Whole days that a forecast looks back on."""
DAYS_MIN = 2
YEAR = 365

Verdict = Literal["cannot tell", "not within a year", "full"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """`day`: when there is no room left. `since` and `until`: the days on whose ends the sizes were noted."""

    verdict: Verdict
    rests_on: str
    bytes_per_day: float | None = None
    day: date | None = None
    since: date | None = None
    until: date | None = None


def forecast(sizes: Sequence[tuple[date, int]], room_bytes: int, today: date) -> Forecast:
    """When `room_bytes` more are full, if the store goes on growing as it did, in a straight line.

    `sizes` are days and the bytes that were stored at the end of each, oldest first; today's is not at its end.
    """
    whole = [(day, size) for day, size in sizes if today - timedelta(days=DAYS + 1) <= day < today]
    days = (whole[-1][0] - whole[0][0]).days if whole else 0
    if days < DAYS_MIN:
        known = f"{days} whole days" if days != 1 else "one whole day"
        return Forecast("cannot tell", f"{known} of sizes in the last {DAYS} days; {DAYS_MIN} are needed")
    (since, first), (until, last) = whole[0], whole[-1]
    per_day = (last - first) / days
    rests_on = f"{days} whole days, from the end of {since} to the end of {until}, deletions included"
    # Of today nothing is known yet but the room that is left now.
    if per_day <= 0 or room_bytes / per_day > YEAR:
        return Forecast("not within a year", rests_on, per_day, None, since, until)
    day = today + timedelta(days=int(max(room_bytes, 0) / per_day))
    return Forecast("full", rests_on, per_day, day, since, until)
