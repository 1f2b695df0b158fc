"""What answers, put together: the parts that work out what is known of traces, and the HTTP API.

Used from the main thread, at start and stop.
"""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from query import (
    assessments_api,
    compare_api,
    entities_api,
    erasures_api,
    links_api,
    pins_api,
    registry_api,
    retention_api,
    retention_plan_api,
    sampling_api,
    snapshots_api,
    storage_api,
)
from query.api import create_app
from query.assessed import Assessed
from query.assessment_answers import assessment_json
from query.entities import Entities
from query.implied import ImpliedLinks
from query.mlflow.gateway import Asgi, Gateway
from query.registry import Registry
from query.samples import Samples
from query.selection import Selection
from query.storage_api import Beside
from query.storage_metrics import StoreMetrics
from query.trace_links import TraceLinks
from query.traces import Traces
from storage.annotations import Annotations
from storage.assessments import Assessments
from storage.deployments import Deployments
from storage.engine import Engine
from storage.erasure import Unloaded
from storage.harvest import Harvest
from storage.keeping import Keeping
from storage.linking import Deployment
from storage.prices import Prices
from storage.relink import recanonicalize
from storage.resettling import Resettling
from storage.sampler import Sampler
from storage.settling import Settler
from storage.snapshots import Snapshots, holders
from storage.spans import Span
from storage.vocabulary import Vocabulary


class Settings(Protocol):
    """What it takes of the settings; their page says what each means (docs/settings.md)."""

    data_dir: Path
    clickhouse: str | None
    prices: Path | None
    trace_spans_max: int
    mlflow_url: str | None


class QueryService:
    """What is known of traces beside their spans, the parts that work it out, and the API that answers with it."""

    def __init__(
        self,
        settings: Settings,
        parts: ExitStack,
        engine: Engine,
        *,
        vocabulary: Vocabulary,
        prices: Prices,
        deployments: dict[str, list[Deployment]],
        registry: Registry | None,
        metrics: CollectorRegistry,
        sampler: Sampler,
        unloaded: Unloaded | None,
        beside: Beside,
    ) -> None:
        """Begin to settle. `parts` gets what is to be stopped; `unloaded` and `beside`: of a collector here."""
        self._settings, self._engine, self._vocabulary, self._prices = settings, engine, vocabulary, prices
        store = settings.data_dir.absolute() / "store"
        self._snapshots = None if settings.clickhouse else Snapshots(engine, store)
        self._deployments = Deployments(engine, deployments)
        settler = Settler(engine, vocabulary, self._deployments, prices.cost, trace_spans_max=settings.trace_spans_max)
        self._keeping = Keeping(
            engine,
            vocabulary,
            settler.catch_up,
            unloaded=unloaded,
            holders=partial(holders, store) if self._snapshots else list,
        )
        self._sampling_rules = sampler.rules
        self.load = self._keeping.ruled(settler.watched(sampler.sampled(engine.load)))
        self._annotations = Annotations(engine, settler.touch)
        self._assessments = Assessments(engine, settler.touch)
        self._registry = registry
        self._imply = None
        if self._registry is not None:
            self._imply = ImpliedLinks(engine, self._registry, settler.touch)
            self._registry.start()
            parts.callback(self._registry.stop)
        settler.start(Harvest(engine, self._assessments, settler.touch), self._imply)
        parts.callback(settler.stop)
        self._keeping.start()
        parts.callback(self._keeping.stop)
        metrics.register(StoreMetrics(self._keeping.recounting.seen))
        self._resettling = Resettling(
            engine, settler, partial(recanonicalize, engine, vocabulary), partial(prices.reload, settings.prices)
        )
        parts.callback(self._resettling.stop)
        self._beside = beside

    def make_room(self) -> None:
        """Have what may go early go early."""
        self._keeping.expiry.make_room()

    def api(self, otlp: Asgi) -> FastAPI:
        """The HTTP API, with all that reads traces and what is known of them. `otlp` takes what MLflow sends."""

        engine, settings, registry = self._engine, self._settings, self._registry
        traces = Traces(engine, self._vocabulary)
        describe = registry.describe if registry else None
        links = TraceLinks(engine, self._deployments, self._annotations, imply=self._imply, describe=describe)

        def about(tenant: str, trace_id: bytes, spans: list[Span]) -> dict[str, Any]:
            assessments = self._assessments.of_trace(tenant, trace_id)
            return {
                "links": links.json(tenant, trace_id, spans),
                "assessments": [assessment_json(each) for each in assessments],
            }

        api = create_app(
            traces, engine.ready, price=self._prices.cost, about=about, trace_spans_max=settings.trace_spans_max
        )
        selection = Selection(engine)
        for router in (
            assessments_api.router(self._assessments, Assessed(engine)),
            links_api.router(self._annotations, self._deployments, selection, links, traces, self._resettling),
            # Before the pages of models, whose names take slashes.
            compare_api.router(Samples(engine), registry.write_tags if registry else None),
            entities_api.router(Entities(engine, self._annotations, describe)),
            registry_api.router(registry),
            snapshots_api.router(self._snapshots),
            storage_api.router(self._keeping.volumes, self._beside),
            retention_api.router(self._keeping.policies, self._keeping.expiry),
            retention_plan_api.router(self._keeping.plans),
            pins_api.router(self._keeping.pins),
            sampling_api.router(self._sampling_rules),
            erasures_api.router(self._keeping.erasures),
        ):
            api.include_router(router)
        gateway = Gateway(engine, traces, self._assessments, self._annotations, otlp, mlflow_url=settings.mlflow_url)
        api.mount("/mlflow", gateway)
        return api
