"""Every problem is in one table, and every upstream error maps to it."""

import re

import pytest

from rill.problems import KINDS, UPSTREAM_STATUSES, UPSTREAM_TYPES, Problem, upstream_problem

STATUSES = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "host_not_allowed": 403,
    "prefetch": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "not_resumable": 412,
    "model_not_found": 404,
    "content_too_large": 413,
    "unsupported_media_type": 415,
    "refused": 422,
    "rate_limited": 429,
    "upstream_rate_limited": 429,
    "upstream_rejected": 502,
    "upstream_error": 502,
    "upstream_account_blocked": 502,
    "upstream_unreachable": 502,
    "at_capacity": 503,
    "overloaded": 503,
    "shutdown": 503,
    "upstream_overloaded": 503,
    "upstream_timeout": 504,
    "start_timeout": 504,
    "idle_timeout": 504,
    "total_timeout": 504,
}


@pytest.mark.parametrize(("name", "status"), STATUSES.items())
def test_each_cause_has_its_true_status(name: str, status: int) -> None:
    assert Problem(name).status == status


@pytest.mark.parametrize("name", KINDS)
def test_each_problem_has_a_message_of_one_line(name: str) -> None:
    problem = Problem(name)
    assert 400 <= problem.status <= 599
    assert problem.type
    assert problem.detail.endswith(".")
    assert "\n" not in problem.detail
    assert str(problem) == problem.detail
    assert problem.retry_after is None


def test_a_specific_message_replaces_the_default_one() -> None:
    problem = Problem("bad_request", "q: should not be empty.")
    assert problem.detail == str(problem) == "q: should not be empty."


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("detail", [None, "At most 60 per minute."])
def test_the_message_states_the_time_to_wait_and_no_other(name: str, detail: str | None) -> None:
    problem = Problem(name, detail, retry_after=3600)
    assert problem.retry_after == 3600
    assert problem.detail.endswith(". Try again in 3600 s.")
    assert not re.search(r"in a moment|later|again\.", problem.detail)


def test_a_problem_has_the_fields_of_rfc_9457() -> None:
    assert Problem("at_capacity").as_json() == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "This server is at capacity. Try again in a moment.",
        "code": "at_capacity",
    }


@pytest.mark.parametrize("name", KINDS)
def test_the_title_of_a_problem_is_for_people_and_its_code_for_programs(name: str) -> None:
    fields = Problem(name).as_json()
    assert fields["code"] == name
    assert " " in str(fields["title"]) or fields["title"] in ("Unauthorized", "Forbidden")


def test_an_unknown_name_raises_key_error() -> None:
    with pytest.raises(KeyError):
        Problem("no_such_problem")


@pytest.mark.parametrize("name", sorted({*UPSTREAM_TYPES.values(), *UPSTREAM_STATUSES.values()}))
def test_every_upstream_error_maps_to_a_known_problem(name: str) -> None:
    assert name in KINDS


@pytest.mark.parametrize(
    ("type", "status", "ours"),
    [
        ("invalid_request_error", 400, 400),
        ("authentication_error", 401, 502),
        ("permission_error", 403, 502),
        ("billing_error", 402, 502),
        ("not_found_error", 404, 502),
        ("request_too_large", 413, 413),
        ("rate_limit_error", 429, 429),
        ("api_error", 500, 502),
        ("overloaded_error", 529, 503),
        ("timeout_error", 504, 504),
        # An error event in mid-stream has only a type, and the status is 200.
        ("overloaded_error", None, 503),
        ("overloaded_error", 200, 503),
        ("rate_limit_error", None, 429),
        ("api_error", None, 502),
        ("brand_new_error", None, 502),
        # A relay's error may have only a status.
        (None, 400, 400),
        (None, 401, 502),
        (None, 403, 502),
        (None, 404, 502),
        (None, 413, 413),
        (None, 422, 400),
        (None, 429, 429),
        (None, 500, 502),
        (None, 502, 502),
        (None, 503, 503),
        (None, 504, 504),
        (None, 529, 503),
        (None, 307, 502),
        (None, 418, 502),
        ("brand_new_error", 429, 429),
        (None, None, 502),
    ],
)
def test_each_upstream_error_has_a_true_status(type: str | None, status: int | None, ours: int) -> None:
    assert upstream_problem(type, "its message", status).status == ours


@pytest.mark.parametrize("type", ["invalid_request_error", "request_too_large"])
def test_an_error_that_the_client_can_fix_has_the_upstreams_message(type: str) -> None:
    assert upstream_problem(type, "messages.0: roles must alternate").detail == "messages.0: roles must alternate"


@pytest.mark.parametrize("type", [*sorted({*UPSTREAM_TYPES} - {"invalid_request_error", "request_too_large"}), None])
def test_an_error_that_the_client_cannot_fix_never_has_the_upstreams_message(type: str | None) -> None:
    assert "sk-ant" not in upstream_problem(type, "invalid x-api-key sk-ant-123", 500).detail


def test_an_upstream_error_without_a_message_has_the_default_one() -> None:
    assert upstream_problem("invalid_request_error", None).detail == KINDS["bad_request"].message


@pytest.mark.parametrize(
    ("type", "sent", "expected"),
    [
        ("rate_limit_error", 3600, 3600),
        ("rate_limit_error", 0, 0),
        ("rate_limit_error", None, 1),
        ("overloaded_error", 7, 7),
        ("overloaded_error", None, 1),
        ("api_error", None, None),
        ("invalid_request_error", None, None),
    ],
)
def test_retry_after_is_set_if_waiting_helps(type: str, sent: int | None, expected: int | None) -> None:
    assert upstream_problem(type, None, None, sent).retry_after == expected


@pytest.mark.parametrize(
    "message",
    ["Your credit balance is too low to access the API.", "You have reached your specified API usage limits."],
)
def test_a_blocked_account_is_not_reported_as_a_client_error(message: str) -> None:
    problem = upstream_problem("invalid_request_error", message, 400)
    assert (problem.name, problem.status) == ("upstream_account_blocked", 502)
    assert message not in problem.detail


def test_a_model_that_does_not_exist_is_named_if_the_client_chose_it() -> None:
    assert upstream_problem("not_found_error", "model: claude-9", 404, model="claude-9").name == "model_not_found"
    for message, model in (("model: claude-9", None), ("Not Found", "claude-9"), (None, "claude-9")):
        assert upstream_problem("not_found_error", message, 404, model=model).name != "model_not_found"


def test_a_secret_is_removed_from_a_forwarded_message() -> None:
    problem = upstream_problem("invalid_request_error", "bad key sk-1 in bad header", secrets=["sk-1"])
    assert problem.detail == "bad key [key] in bad header"
