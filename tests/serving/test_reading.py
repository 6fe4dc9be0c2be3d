"""Requests as clients write them, right and wrong."""

from __future__ import annotations

import json
import re

import pytest

from omni_serving.config import ServeConfig
from omni_serving.errors import RequestError, error_body
from omni_serving.reading import Limits, Prompt, check_model, clip_source, parse_request, read_limits, read_prompt
from omni_serving.uploads import Upload

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
    }
    for param, body in cases.items():
        problem = refusal(body)
        assert problem.param == param
        assert problem.message.startswith(f"{param}: ")


def test_an_unknown_field_names_the_nearest() -> None:
    problem = refusal({**body_with([TEXT, VIDEO]), "max_phase": 2})
    assert problem.code == "unknown_field"
    assert problem.message == "the request has an unknown field 'max_phase'; did you mean 'max_phases'?"
    problem = refusal({**body_with([TEXT, VIDEO]), "extra_body": {}})
    assert problem.message == "the request has an unknown field 'extra_body'; leave it out"


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"", "invalid_json"), (b"{", "invalid_json"), (b"\xff\xfe", "invalid_json"), (b"[]", "invalid_request")],
)
def test_a_body_that_is_no_request_is_refused(body, code) -> None:
    problem = refusal(body)
    assert problem.code == code
    assert problem.message.startswith("the body")


NEUTRAL = {
    "n": [1],
    "temperature": [0, 0.0],
    "top_p": [1, 1.0],
    "top_k": [-1, 1],
    "frequency_penalty": [0],
    "presence_penalty": [0],
    "logit_bias": [{}],
    "logprobs": [False],
    "top_logprobs": [0],
    "stop": [[]],
    "tools": [[]],
    "tool_choice": ["none"],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
}
WOULD_CHANGE_THE_ANSWER = {
    "n": [2, 0, "1"],
    "best_of": [2],
    "temperature": [0.7, 1, -1, "0", True],
    "top_p": [0.9, 0],
    "top_k": [40],
    "min_p": [0.1],
    "seed": [1, 0],
    "frequency_penalty": [0.5],
    "presence_penalty": [-1],
    "repetition_penalty": [1.1],
    "logit_bias": [{"5": 100}],
    "logprobs": [True],
    "top_logprobs": [5],
    "stop": ["\n", ["a"]],
    "tools": [[{"type": "function"}]],
    "tool_choice": ["auto", "required"],
    "functions": [[{"name": "f"}]],
    "response_format": [{"type": "json_object"}],
    "modalities": [["text", "audio"]],
    "audio": [{"voice": "x"}],
    "reasoning_effort": ["high"],
}


def test_what_asks_for_nothing_is_taken() -> None:
    for name in WOULD_CHANGE_THE_ANSWER:
        request(**{name: None})
    for name, values in NEUTRAL.items():
        for value in values:
            request(**{name: value})
    request(user="u", stream=False, stream_options=None, metadata={"a": "b"}, store=False)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WOULD_CHANGE_THE_ANSWER.items() for v in values])
def test_what_would_change_the_answer_is_refused(name, value) -> None:
    problem = refusal({**body_with([TEXT, VIDEO]), name: value})
    assert (problem.code, problem.param) == ("unsupported_value", name)
    assert problem.message.startswith(f"{name}: this value would change the answer")
    assert "greedy" in problem.message and "leave it out" in problem.message


def test_the_refusal_names_the_value_that_works() -> None:
    assert refusal({**body_with([TEXT, VIDEO]), "temperature": 0.7}).message.endswith("leave it out or send 0")


def test_text_and_options_are_bounded() -> None:
    for param, body in (
        ("options", {**body_with([TEXT, VIDEO]), "options": ["x"] * 65}),
        ("options[1]", {**body_with([TEXT, VIDEO]), "options": ["x", "y" * 1001]}),
        ("messages", {"messages": [{"role": "user", "content": "x"}] * 17}),
        ("messages[0].content", body_with([TEXT] * 65)),
        ("messages[0].role", {"messages": [{"role": "u" * 33, "content": "x"}]}),
        ("model", {**body_with([TEXT, VIDEO]), "model": "m" * 257}),
    ):
        problem = refusal(body)
        assert problem.param == param
        assert len(problem.message) < 300
    assert len(refusal({**body_with([TEXT, VIDEO]), "k" * 10_000: 1}).message) < 300


def test_a_data_uri_stands_in_the_video_part_alone(tmp_path) -> None:
    upload = Upload(text=b"", reference="upload-1", clip=tmp_path / "upload-1")
    none = Upload(text=b"", reference="upload-1", clip=None)

    def prompt(url: str) -> Prompt:
        return Prompt(question="q", video_url=url, options=())

    assert clip_source(prompt("upload-1"), upload) == tmp_path / "upload-1"
    assert clip_source(prompt(" clip.mp4 "), none) == "clip.mp4"
    # Without a data URI in the body, the reference is a word like any other.
    assert clip_source(prompt("upload-1"), none) == "upload-1"
    for url, given in (("clip.mp4", upload), ("data:video/mp4,AAAA", none), ("DATA:;base64", none)):
        with pytest.raises(RequestError) as caught:
            clip_source(prompt(url), given)
        assert (caught.value.status, caught.value.code) == (400, "bad_data_uri")


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
