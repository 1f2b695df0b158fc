"""Reads the traces of two versions for their comparison, from the rows of `links`. Runs on the threads of the API."""

import math
from typing import Any

from query.comparison import Sample, Scored, Wanted
from query.traces import sql
from storage.decode import INT64_MAX
from storage.engine import Engine

NAMES_MAX = 200
LABELS_MAX = 50


class Samples:
    """The newest traces of a model's version, of a run, of anything that traces are linked to."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def sample(self, tenant: str, wanted: Wanted, limit: int) -> Sample:
        """At most `limit` of the traces, with what was said of them.

        Raises QueryTimeout, QueryTooLarge, StoreUnavailable.
        """
        since, until = wanted.since_unix_nano, wanted.until_unix_nano
        asked: dict[str, Any] = {
            "entity": wanted.entity, "id": wanted.id, "version": wanted.version,
            "since": since or 0, "until": INT64_MAX if until is None else until, "limit": limit,
        }  # fmt: skip
        columns = self._engine.read(tenant, sql("sample"), asked)
        if not columns or not columns[0]:
            return Sample(0)
        ids, starts, durations, failed, of_input, of_output, of_total, costs, unpriced, tools, weights = columns
        sampled = any(weight > 1 for weight in weights)
        count = round(math.fsum(weights))
        if len(ids) == limit:
            count = max(int(self._engine.read(tenant, sql("sample_count"), asked)[0][0]), count)
        names: dict[bytes, str] = {}
        return Sample(
            traces=count,
            trace_ids=ids,
            starts_unix_nano=starts,
            durations_nano=durations,
            failed=failed,
            input_tokens=of_input,
            output_tokens=of_output,
            total_tokens=of_total,
            costs_usd=costs,
            unpriced=unpriced,
            tools=[tuple(_name(tool, names) for tool in called) for called in tools],
            weights=weights if sampled else (),
            scores=self._weighted_scores(tenant, asked) if sampled else self._scores(tenant, asked),
        )

    def _scores(self, tenant: str, asked: dict[str, Any]) -> dict[str, Scored]:
        more = {"names": NAMES_MAX, "labels": LABELS_MAX}
        columns = self._engine.read(tenant, sql("sample_scores"), asked | more)
        return {
            name.decode(errors="replace"): Scored(
                numbers, {label.decode(errors="replace"): count for label, count in labels}, labelled
            )
            for name, numbers, labelled, labels in zip(*columns, strict=True)
        }

    def _weighted_scores(self, tenant: str, asked: dict[str, Any]) -> dict[str, Scored]:
        more = {"names": NAMES_MAX, "labels": LABELS_MAX}
        columns = self._engine.read(tenant, sql("sample_scores_weighted"), asked | more)
        found = {}
        for name, numbers, labelled, labels, weights, squares in zip(*columns, strict=True):
            # As many labels of one weight as tell as much.
            scale = labelled / squares if squares else 0.0
            counts = {label.decode(errors="replace"): count * scale for label, count in labels}
            found[name.decode(errors="replace")] = Scored(numbers, counts, labelled * scale, weights)
        return found


def _name(tool: bytes, names: dict[bytes, str]) -> str:
    if tool not in names:
        names[tool] = tool.decode(errors="replace")
    return names[tool]
