"""The calls of MLflow's REST API about assessments: feedback, expectations, references to issues.

Runs on the threads of the API. Source: mlflow 3.17, mlflow/store/tracking/sqlalchemy_store.py.
"""

import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from query.mlflow import assessments_json
from query.mlflow.calls import Answer, Call
from query.mlflow.reading import Reading, missing
from query.mlflow.refusals import MlflowRefused, not_found
from query.mlflow.trace_info import as_list, member
from storage.assessments import Assessment


class AssessmentStore(Protocol):
    """Where assessments are kept: storage.assessments.Assessments."""

    def put(self, tenant: str, assessments: Sequence[Assessment]) -> list[Assessment]:
        """Keep assessments, and give them with their ids and times."""
        ...

    def one(self, tenant: str, trace_id: bytes, assessment_id: str) -> Assessment | None:
        """One assessment of a trace."""
        ...

    def change(self, tenant: str, trace_id: bytes, assessment_id: str, changes: dict[str, Any]) -> Assessment | None:
        """The assessment with other values for some of its fields; None if there is no such."""
        ...

    def delete(self, tenant: str, trace_id: bytes, assessment_id: str) -> bool:
        """Remove an assessment. False if there is no such."""
        ...


class AssessmentCalls:
    """The calls, one method each."""

    def __init__(self, reading: Reading, assessments: AssessmentStore) -> None:
        self._reading = reading
        self._assessments = assessments

    def assess(self, call: Call) -> Answer:
        """CreateAssessment."""
        self._exists(call)
        one = assessments_json.from_json(member(call.json, "assessment"), call.id)
        if other := one.metadata.get(assessments_json.OVERRIDES):
            overridden = self._assessments.one(call.tenant, call.id, other)
            if overridden is None:
                raise _no_assessment(call, other)
            one = replace(one, assessment_id=one.assessment_id or f"a-{uuid.uuid4().hex}")
            self._override(call.tenant, overridden, one.assessment_id)
        [put] = self._assessments.put(call.tenant, [one])
        return {"assessment": assessments_json.to_json(put)}

    def assessment(self, call: Call) -> Answer:
        """GetAssessment."""
        return {"assessment": assessments_json.to_json(self._one(call))}

    def reassess(self, call: Call) -> Answer:
        """UpdateAssessment."""
        mask = member(call.json, "update_mask") or ""
        paths = mask.split(",") if isinstance(mask, str) else as_list(member(mask, "paths"))
        paths = [re.sub("([A-Z])", lambda letter: f"_{letter[1].lower()}", str(path)) for path in paths if path]
        changes = assessments_json.changes(call.json, paths, self._one(call))
        changed = self._assessments.change(call.tenant, call.id, call.assessment_id, changes)
        if changed is None:
            raise _no_assessment(call, call.assessment_id)
        return {"assessment": assessments_json.to_json(changed)}

    def unassess(self, call: Call) -> Answer:
        """DeleteAssessment. One that it took the place of has its place again."""
        self._exists(call)
        one = self._assessments.one(call.tenant, call.id, call.assessment_id)
        if one is not None:
            if other := one.metadata.get(assessments_json.OVERRIDES):
                overridden = self._assessments.one(call.tenant, call.id, other)
                if overridden is not None:
                    self._override(call.tenant, overridden, "")
            self._assessments.delete(call.tenant, call.id, call.assessment_id)
        return {}

    def _override(self, tenant: str, one: Assessment, by: str) -> None:
        metadata = assessments_json.overridden(one, by).metadata
        self._assessments.change(tenant, one.trace_id, one.assessment_id, {"metadata": metadata})

    def _one(self, call: Call) -> Assessment:
        self._exists(call)
        one = self._assessments.one(call.tenant, call.id, call.assessment_id)
        if one is None:
            raise _no_assessment(call, call.assessment_id)
        return one

    def _exists(self, call: Call) -> None:
        if call.id not in self._reading.infos(call.tenant, [call.id]):
            raise missing(call.id)


def _no_assessment(call: Call, assessment_id: str) -> MlflowRefused:
    return not_found(f"cannot find assessment {assessment_id[:200]!r} of trace {call.trace_id}")
