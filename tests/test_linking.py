"""What traces belong to: who is heard before whom, and the rows of links as the settling writes and takes them back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from settling_house import SECOND, START, House, call, eventually, request, span, trace_id

from query.trace_links import links_json
from storage.deployments import BadDeployments, Deployments, load_file
from storage.linking import (
    LINKS_OF_ENTITY_MAX,
    NOBODY,
    PROVENANCES,
    Deployment,
    Link,
    Origin,
    owners,
    resolve,
    with_versions,
)

DEPLOYED = Deployment("d", "shop", "", "m", "9", 10, 20)


def links(explicit=(), said=(), agents=(), origins=(), deployments=(), start=15):
    return resolve(
        explicit=explicit, said=said, agents=agents, origins=origins, deployments=deployments, start_unix_nano=start
    )


# Precedence


@pytest.mark.parametrize("least", range(len(PROVENANCES) - 1))
def test_who_is_heard_before_whom(least: int):
    """Of all places that name a model, the first in order; the others are not heard."""
    places = ("trace.", "header.", "baggage.")
    said = {f"{prefix}model_name": prefix or "span" for prefix in ("", *places)}
    maps = [{key: value} for key, value in said.items() if _rank(key) >= least]
    resource = [Origin("shop", {"model_name": "resource"} if least <= 3 else {})]
    explicit = [Link("model", "explicit", "1", "api")] if least == 0 else []
    (link,) = links(explicit, maps, origins=resource, deployments=[DEPLOYED])
    assert link.provenance == PROVENANCES[least]


def _rank(key: str) -> int:
    return PROVENANCES.index(key.partition(".")[0] if "." in key else "span")


def test_each_entity_by_itself():
    found = links(
        explicit=[Link("session", "s2", "", "api")],
        said=[{"session_id": "s1", "user_id": "u"}, {"header.run_id": "r", "trace.run_id": "t"}],
        origins=[Origin("shop", {"run_id": "of the pod", "model_name": "m", "model_version": "3"})],
    )
    assert found == [
        Link("model", "m", "3", "resource"),
        Link("run", "t", "", "trace"),
        Link("session", "s2", "", "api"),
        Link("user", "u", "", "span"),
    ]


def test_several_of_one_place_are_several_links():
    found = links(said=[{"run_id": "b"}, {"run_id": "a"}, {"run_id": "b", "user_id": "u"}, {"trace.run_id": "c"}])
    assert [(link.id, link.provenance) for link in found if link.entity == "run"] == [("a", "span"), ("b", "span")]


def test_a_version_is_not_said_twice():
    said = [{"model_name": "m"}, {"model_name": "m", "model_version": "2"}, {"model_name": "n"}]
    assert [link[1:3] for link in links(said=said)] == [("m", "2"), ("n", "")]
    assert with_versions([("a", ""), ("b", ""), ("a", "2"), ("a", "3")]) == [
        ("a", "2"),
        ("b", ""),
        ("a", "2"),
        ("a", "3"),
    ]


def test_a_version_or_nothing_alone_says_nothing():
    assert links(said=[{"model_version": "2"}, {"run_id": ""}, {"prompt_version": "1", "agent_name": "a"}]) == [
        Link("agent", "a", "", "span")
    ]


def test_a_trace_has_so_many_links_of_a_sort():
    assert len(links(said=[{"run_id": f"{n:04}"} for n in range(500)])) == LINKS_OF_ENTITY_MAX


# Deployments


@pytest.mark.parametrize(("start", "linked"), [(9, False), (10, True), (19, True), (20, False)])
def test_a_deployment_lasts_from_its_start_until_before_its_end(start: int, linked: bool):
    found = links(origins=[Origin("shop", {})], deployments=[DEPLOYED], start=start)
    assert found == ([Link("model", "m", "9", "deployment")] if linked else [])


def test_deployments_of_an_environment_and_of_several_services():
    prod = Deployment("p", "shop", "prod", "m", "1", 0, None)
    other = Deployment("o", "agent", "", "n", "2", 0, None)
    deployments = [prod, other]

    def found(*origins: Origin, said=()):
        return [link[1:3] for link in links(origins=origins, deployments=deployments, said=said)]

    assert found(Origin("shop", {})) == []
    assert found(Origin("shop", {"environment": "prod"})) == [("m", "1")]
    assert found(Origin("shop", {}), said=[{"environment": "prod"}]) == [("m", "1")]
    assert found(Origin("shop", {"environment": "prod"}), Origin("agent", {})) == [("m", "1"), ("n", "2")]
    assert found(Origin("agent", {"model_name": "said"})) == [("said", "")]


def test_a_file_of_deployments(tmp_path: Path):
    path = tmp_path / "deployments.toml"
    path.write_text(
        '[[deployment]]\nservice = "shop"\nmodel = "m"\nversion = "4"\nsince = 2026-01-31T12:00:00Z\n'
        '[[deployment]]\nid = "x"\ntenant = "t"\nservice = "shop"\nenvironment = "prod"\nmodel = "m"\nversion = "5"\n'
        "since = 2026-01-31T13:00:00+01:00\nuntil = 2026-02-01T00:00:00.5Z\n"
    )
    noon = 1_769_860_800 * SECOND
    assert load_file(path) == {
        "default": [Deployment("file-1", "shop", "", "m", "4", noon, None, "file")],
        "t": [Deployment("x", "shop", "prod", "m", "5", noon, noon + 43200 * SECOND + SECOND // 2, "file")],
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[deployment", "cannot read the deployments in"),
        ('deployment = "x"', "holds [[deployment]] tables"),
        ("[[deployment]]\nservise = 1", "number 1 in .*: there is no 'servise'"),
        ("[[deployment]]\nservice = 1", "service is a text"),
        ('[[deployment]]\nservice = "s"\nmodel = "m"\nversion = "1"', "it needs since"),
        (
            '[[deployment]]\nservice = "s"\nmodel = "m"\nversion = "1"\nsince = "2026-01-31"',
            "since is a time with a zone",
        ),
        (
            '[[deployment]]\nservice = "s"\nmodel = "m"\nversion = "1"\nsince = 2026-01-31T12:00:00',
            "a time with a zone",
        ),
        (
            '[[deployment]]\nservice = "s"\nmodel = "m"\nversion = "1"\nsince = 2026-01-31T12:00:00Z\n'
            "until = 2026-01-31T12:00:00Z",
            "until lies before since",
        ),
    ],
)
def test_a_file_of_deployments_that_cannot_be_used(tmp_path: Path, text: str, said: str):
    path = tmp_path / "deployments.toml"
    path.write_text(text)
    with pytest.raises(BadDeployments, match=said.replace("[[", r"\[\[").replace("]]", r"\]\]")):
        load_file(path)


# Owners


def test_owners():
    #  0 boss ── 1 ── 2 aide ── 3
    #            └─── 4       5 (no agent)
    assert list(owners([-1, 0, 1, 2, 1, -1], [0, NOBODY, 1, NOBODY, NOBODY, NOBODY])) == [0, 0, 1, 1, 0, NOBODY]


@given(st.lists(st.tuples(st.integers(-1, 20), st.integers(-1, 3)), min_size=1, max_size=20))
def test_an_owner_is_named_by_the_span_or_by_the_nearest_above(nodes: list[tuple[int, int]]):
    parent = [up if up < len(nodes) else -1 for up, _ in nodes]
    named = [agent for _, agent in nodes]

    def looked_up(span: int) -> int:
        for _ in range(len(nodes)):
            if named[span] != NOBODY:
                return named[span]
            if parent[span] == -1:
                break
            span = parent[span]
        return NOBODY

    assert list(owners(parent, named)) == [looked_up(span) for span in range(len(nodes))]


# The answer


def test_links_as_json():
    found = [
        Link("run", "r1", "", "span"),
        Link("run", "r2", "", "span"),
        Link("model", "m", "3", "api"),
        Link("prompt", "p", "", "header"),
    ]
    known = {("run", "r1", ""): {"name": "sweep"}, ("model", "m", "3"): {"stage": "Production"}}
    assert links_json(
        found, lambda *key: known.get(key), lambda *key: {"url": "http://x"} if key[1] == "r2" else None
    ) == {
        "run": {
            "id": "r1",
            "provenance": "span",
            "registry": {"name": "sweep"},
            "others": [{"id": "r2", "provenance": "span", "metadata": {"url": "http://x"}}],
        },
        "model_version": {"name": "m", "version": "3", "provenance": "api", "registry": {"stage": "Production"}},
        "prompt": {"name": "p", "version": None, "provenance": "header"},
    }


# In the store


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("house")).start()
    yield made
    made.close()


def tree_links(house: House, trace: bytes) -> list[tuple[str, str, str, str]]:
    """What the answer of the trace itself says."""
    spans = house.store.traces.spans_of("default", trace, content=False, limit=1000)
    return sorted(tuple(link) for link in house.trace_links.links_of("default", trace, spans))


def test_links_of_all_places(house: House):
    agent = {"gen_ai__operation__name": "invoke_agent", "gen_ai__agent__name": "boss"}
    house.load(
        request(
            span(1, 1, session__id="s", user__id="u", **agent),
            call(1, 2, 1, spanhouse__prompt__name="p", spanhouse__prompt__version="7"),
            span(
                1, 3, 1, **{"baggage__spanhouse__model__name": "of baggage", "langfuse__trace__metadata__run__id": "t"}
            ),
            spanhouse__experiment__id="x",
            spanhouse__run__id="of the pod",
        ),
        context=(("model_name", "m"), ("model_version", "4"), ("run_id", "of the header")),
    )
    house.settle()
    expected = [
        ("agent", "boss", "", "span"),
        ("model", "m", "4", "header"),
        ("prompt", "p", "7", "span"),
        ("run", "t", "", "trace"),
        ("session", "s", "", "span"),
        ("user", "u", "", "span"),
    ]
    assert [link for link in house.linked(trace_id(1)) if link[0] != "experiment"] == expected
    assert tree_links(house, trace_id(1)) == house.linked(trace_id(1))


def test_a_service_whose_resource_names_a_run(house: House):
    """Its spans say nothing themselves: the resource makes the trace matter."""
    house.load(request(span(10, 1), service="job", run__id="nightly"), request(span(11, 1), service="job"))
    house.settle()
    assert house.linked(trace_id(10)) == [("run", "nightly", "", "resource")] == tree_links(house, trace_id(10))
    assert house.facts(trace_id(11)) is None


def test_a_service_that_is_deployed(house: House):
    house.deployments.put("default", Deployment("d1", "ranker", "", "ranking", "12", START - 1, START + 10 * SECOND))
    house.load(request(span(20, 1), service="ranker"), request(span(21, 1, start_s=10), service="ranker"))
    house.settle()
    assert house.linked(trace_id(20)) == [("model", "ranking", "12", "deployment")] == tree_links(house, trace_id(20))
    assert house.linked(trace_id(21)) == []


def test_a_link_made_afterwards_and_taken_back(house: House):
    house.load(request(call(30, 1, spanhouse__run__id="said")))
    house.settle()
    house.annotations.link("default", [trace_id(30)], "run", "meant")
    assert tree_links(house, trace_id(30)) == [("run", "meant", "", "api")]
    eventually(lambda: house.linked(trace_id(30)) == [("run", "meant", "", "api")])
    assert house.annotations.unlink("default", [trace_id(30)], ["session"]) == 0
    assert house.annotations.unlink("default", [trace_id(30)], ["run"], "another") == 0
    assert house.annotations.unlink("default", [trace_id(30)]) == 1
    eventually(lambda: house.linked(trace_id(30)) == [("run", "said", "", "span")])


def test_a_link_made_before_its_trace_arrives(house: House, monkeypatch: pytest.MonkeyPatch):
    """Of a trace that says nothing itself."""
    monkeypatch.setattr("storage.settling.RETRIES_S", (0.2,) * 100)
    house.annotations.link("default", [trace_id(40)], "model", "m", "1")
    house.load(request(span(40, 1), service="shop"))
    eventually(lambda: house.linked(trace_id(40)) == [("model", "m", "1", "api")])


def test_runs_that_mlflow_links_stay_beside_each_other(house: House):
    house.load(request(call(50, 1)))
    for run in ("a", "b"):
        house.annotations.link("default", [trace_id(50)], "run", run, "", "mlflow")
    for version in ("1", "2"):
        house.annotations.link("default", [trace_id(50)], "prompt", "p", version, "mlflow")
    house.annotations.link("default", [trace_id(50)], "prompt", "q", "", "mlflow")
    found = [("prompt", "p", "2"), ("prompt", "q", ""), ("run", "a", ""), ("run", "b", "")]
    eventually(lambda: [link[:3] for link in house.linked(trace_id(50))] == found)
    house.annotations.link("default", [trace_id(50)], "run", "c")  # somebody corrects it
    eventually(lambda: [link[:3] for link in house.linked(trace_id(50))] == [*found[:2], ("run", "c", "")])


def test_deployments_last(house: House):
    house.deployments.put("t", DEPLOYED)
    house.deployments.put("t", Deployment("e", "shop", "prod", "m", "1", 5, None))
    assert house.deployments.delete("t", "d")
    assert not house.deployments.delete("t", "d")
    again = Deployments(house.engine, {"t": [Deployment("f", "a", "", "m", "2", 1, 2, "file")]})
    assert [(one.id, one.until_unix_nano, one.source) for one in again.of("t")] == [
        ("f", 2, "file"),
        ("e", None, "api"),
    ]
    assert again.services() >= {"a", "shop"}
