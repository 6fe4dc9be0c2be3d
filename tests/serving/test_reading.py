"""Requests as clients write them, right and wrong."""

from __future__ import annotations

import json
import re

import pytest

from omni_serving.config import ServeConfig
from omni_serving.errors import RequestError, error_body
from omni_serving.reading import Limits, Prompt, check_model, parse_request, read_limits, read_prompt

TEXT = {"type": "text", "text": "Which colour?"}
VIDEO = {"type": "video_url", "video_url": {"url": "clip.mp4"}}


def request(content: object = None, **more: object):
    messages = [{"role": "user", "content": [TEXT, VIDEO] if content is None else content}]
    return parse_request(json.dumps({"messages": messages, **more}).encode())


def refusal(body: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_request(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert caught.value.status == 400
    return caught.value


def body_with(content: object) -> dict:
    return {"messages": [{"role": "user", "content": content}]}


def test_both_forms_of_a_video_part_mean_the_same() -> None:
    short = {"type": "video", "video": "clip.mp4"}
    expected = Prompt(question="Which colour?", video_url="clip.mp4", options=("red", "blue"))
    for video in (VIDEO, short):
        assert read_prompt(request([video, TEXT], options=["red", "blue"])) == expected


def test_text_parts_are_lines_of_one_question() -> None:
    more = {"type": "text", "text": " Name it. "}
    assert read_prompt(request([TEXT, VIDEO, more])).question == "Which colour?\nName it."


@pytest.mark.parametrize("content", [[TEXT], "Which colour?"])
def test_a_request_without_a_video_is_told_how_to_send_one(content) -> None:
    with pytest.raises(RequestError, match=re.escape('add a part {"type": "video_url"')) as caught:
        read_prompt(request(content))
    assert (caught.value.status, caught.value.code) == (400, "no_video")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["red", ""], "option 2 of 2 is empty"),
        (["red", "blue", "RED "], "options 1 and 3 are the same"),
        ([str(i) for i in range(27)], "27 options, and letters are enough for 26"),
    ],
)
def test_options_that_no_answer_could_name_are_refused(options, problem) -> None:
    with pytest.raises(RequestError, match=problem) as caught:
        read_prompt(request(options=options))
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "bad_options", "options")


def test_one_question_about_one_clip() -> None:
    for content, code in (
        ([TEXT, VIDEO, VIDEO], "many_videos"),
        ([VIDEO], "no_question"),
        ([VIDEO, {"type": "text", "text": "  "}], "no_question"),
    ):
        with pytest.raises(RequestError) as caught:
            read_prompt(request(content))
        assert caught.value.code == code
    user, system = {"role": "user", "content": [TEXT, VIDEO]}, {"role": "system", "content": "Be brief."}
    for messages in ([], [system], [system, user], [user, user]):
        with pytest.raises(RequestError, match="exactly one message"):
            read_prompt(parse_request(json.dumps({"messages": messages}).encode()))


def test_an_unknown_part_is_named_with_its_place() -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    problem = refusal(body_with([TEXT, image]))
    assert problem.code == "unknown_part"
    assert problem.param == "messages[0].content[1]"
    assert "'image_url'" in problem.message and "'video_url'" in problem.message
    assert refusal(body_with([{"text": "no type"}])).code == "unknown_part"


def test_wrong_fields_are_named_with_their_place() -> None:
    cases = {
        "messages[0].content[1].video_url.url": body_with([TEXT, {"type": "video_url", "video_url": {}}]),
        "messages[0].content[0].text": body_with([{"type": "text", "text": 3}]),
        "messages[0].role": {"messages": [{"content": "x"}]},
        "messages": {"model": "m"},
        "max_tokens": {**body_with([TEXT, VIDEO]), "max_tokens": 0},
        "n": {**body_with([TEXT, VIDEO]), "n": 2},
    }
    for param, body in cases.items():
        problem = refusal(body)
        assert problem.param == param
        assert problem.message.startswith(f"{param}: ")


def test_an_unknown_field_names_the_nearest() -> None:
    problem = refusal({**body_with([TEXT, VIDEO]), "max_phase": 2})
    assert problem.code == "unknown_field"
    assert problem.message == "the request has an unknown field 'max_phase'; did you mean 'max_phases'?"
    problem = refusal({**body_with([TEXT, VIDEO]), "tools": []})
    assert problem.message == "the request has an unknown field 'tools'; leave it out"


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"", "invalid_json"), (b"{", "invalid_json"), (b"\xff\xfe", "invalid_json"), (b"[]", "invalid_request")],
)
def test_a_body_that_is_no_request_is_refused(body, code) -> None:
    problem = refusal(body)
    assert problem.code == code
    assert problem.message.startswith("the body")


def test_what_every_client_sends_is_taken() -> None:
    request(temperature=0.7, top_p=1, seed=1, user="u", stream=False, stream_options=None, n=1)


def test_limits_come_from_the_request_within_the_servers() -> None:
    config = ServeConfig(model="m", max_new_tokens=100, max_phases=3)
    assert read_limits(request(), config) == Limits(max_new_tokens=100, max_phases=3)
    asked = request(max_tokens=90, max_completion_tokens=80, max_phases=0)
    assert read_limits(asked, config) == Limits(max_new_tokens=80, max_phases=0)
    for over in ({"max_tokens": 101}, {"max_phases": 4}):
        with pytest.raises(RequestError, match="at most") as caught:
            read_limits(request(**over), config)
        assert caught.value.param == next(iter(over))


def test_only_the_served_model_is_asked() -> None:
    check_model(request(), "m")
    check_model(request(model="m"), "m")
    with pytest.raises(RequestError, match="this server has 'm'") as caught:
        check_model(request(model="gpt"), "m")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_error_objects_have_openais_shape() -> None:
    assert error_body("why", status=400, code="no_video", param="messages") == {
        "error": {"message": "why", "type": "invalid_request_error", "param": "messages", "code": "no_video"}
    }
    kinds = {
        413: "invalid_request_error",
        404: "not_found_error",
        429: "rate_limit_error",
        500: "server_error",
    }
    assert {status: error_body("", status=status)["error"]["type"] for status in kinds} == kinds


def test_the_model_name_is_read_off_the_model() -> None:
    names = {
        "models:/omni@champion": "omni@champion",
        "outputs/demo/model/": "model",
        "models:/omni/3": "omni/3",
    }
    assert {model: ServeConfig(model=model).model_name for model in names} == names
    assert ServeConfig(model="x", served_model_name="y").model_name == "y"


@pytest.mark.parametrize(
    "changes",
    [{"model": ""}, {"max_batch_size": 0}, {"batch_wait_s": -1.0}, {"port": 0}, {"max_duration_s": 0.0}],
)
def test_settings_that_cannot_work_are_refused(changes) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        ServeConfig(**{"model": "m", **changes})
