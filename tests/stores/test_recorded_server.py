"""The stand-in (tests/qdrant_server.py) answers as a real Qdrant 1.18.3 did, or the difference is named here.

RECORDED names a folder of what a server answered, one file a scenario: each begins on an empty server and has an
exchange a line, in order: {"method", "path", "body", "status", "answer"}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.conftest import skip_or_fail
from tests.qdrant_server import FakeQdrant

RECORDED = Path(os.environ.get("RECORDED") or "data/qdrant-1.18.3")
SCENARIOS = sorted(file.stem for file in RECORDED.glob("*.jsonl"))

LEFT_OUT = {
    "* status.error": "Texts of errors: the product shows them and decides by the status alone.",
    "* time": "Times were not recorded.",
    "* result.operation_id": "Numbers of operations: the product waits for each operation instead.",
    "* result*points.*.version": "The operation that wrote a point, for the same reason.",
    "* result.points.* of equal score.*": "Which of equal scores come first, and so which ones a limit cuts off: "
    "a server answers otherwise from one limit to the next.",
    "GET /collections/* result.status": "Work in the background: a server is yellow until it has adopted new options.",
    "GET /collections/* result.payload_schema.*.points": "Points in a payload index: the product asks for its type.",
    "GET / commit": "The commit that a server was built from.",
}
"""What the stand-in answers otherwise, as METHOD PATH and the place in the answer, and why."""


class Exchange(NamedTuple):
    """The values of what the server and the stand-in answered to one request, each by its place, the status too."""

    request: str
    recorded: dict[str, Any]
    answered: dict[str, Any]


@pytest.mark.parametrize("scenario", SCENARIOS or [""])
def test_stand_in__answers_as_the_server_did(scenario: str) -> None:
    for exchange in replay(scenario):
        wanted = pytest.approx(without_left_out(exchange.recorded), abs=1e-6)
        assert without_left_out(exchange.answered) == wanted, exchange.request


def test_what_is_left_out__still_differs() -> None:
    differing = {
        place
        for scenario in SCENARIOS or [""]
        for exchange in replay(scenario)
        for place, _ in exchange.recorded.items() ^ exchange.answered.items()
    }
    assert [places for places in LEFT_OUT if not any(fnmatchcase(place, places) for place in differing)] == []


def replay(scenario: str) -> Iterator[Exchange]:
    if not scenario:
        skip_or_fail("recorded", f"a server's answers are not in {str(RECORDED)!r}; name their folder with RECORDED=")
    server = FakeQdrant()
    try:
        with httpx.Client(base_url=server.url) as client:
            for number, line in enumerate((RECORDED / f"{scenario}.jsonl").read_text().splitlines(), start=1):
                asked = json.loads(line)
                method, path, recorded = asked["method"], asked["path"], asked["answer"]
                response = client.request(method, path, json=asked["body"])
                answered = response.text if isinstance(recorded, str) else response.json()
                yield Exchange(
                    f"line {number}: {method} {path}",
                    {"code": asked["status"], **values(recorded, f"{method} {path} ")},
                    {"code": response.status_code, **values(answered, f"{method} {path} ")},
                )
    finally:
        server.close()


def values(answer: Any, place: str) -> dict[str, Any]:
    """Return each value in an answer by its place, as in "GET /aliases result.aliases.0.alias_name".

    Numbers as they are, all else as JSON, so that true isn't 1. place: where the answer stands, and one more character.
    """
    if isinstance(answer, list):
        answer = ranked(answer)
    if not answer or not isinstance(answer, dict):
        return {place[:-1]: answer if type(answer) in (int, float) else json.dumps(answer)}
    return {name: value for key, part in answer.items() for name, value in values(part, f"{place}{key}.").items()}


def ranked(items: list[Any]) -> dict[str, Any]:
    """Return the items by their place in the list; points of equal score by it and, but for the score, apart."""
    if not items:
        return {"length": 0}
    scores = [round(item["score"], 5) if isinstance(item, dict) and "score" in item else None for item in items]
    named: dict[str, Any] = {}
    for place, (item, score) in enumerate(zip(items, scores, strict=True)):
        if score is not None and scores.count(score) > 1:
            named |= {str(place): {"score": item["score"]}, f"{place} of equal score": item}
        else:
            named[str(place)] = item
    return named


def without_left_out(found: dict[str, Any]) -> dict[str, Any]:
    return {
        place: value for place, value in found.items() if not any(fnmatchcase(place, places) for places in LEFT_OUT)
    }
