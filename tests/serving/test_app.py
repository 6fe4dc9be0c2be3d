"""The deployed application over real HTTP: Ray Serve, decoders, batches, errors."""

from __future__ import annotations

import base64
import http.client
import inspect
import json
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from omni_platform.config import ConfigError
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import write_mp4
from omni_serving.app import build_app
from omni_serving.config import ServeConfig

JSON = {"Content-Type": "application/json"}


def test_a_good_question_is_answered_with_its_latent_phases(server, film) -> None:
    status, reply = server.ask(film.clip, model="colours")
    assert status == 200
    colour = film.scene.shots[0].colour
    assert reply["object"] == "chat.completion" and reply["model"] == "colours"
    assert reply["id"].startswith("chatcmpl-") and reply["created"] > 0
    [choice] = reply["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": f"12 frames, 6 s of sound, batch of 1. Answer: {colour}",
    }
    assert (choice["index"], choice["finish_reason"], choice["answer"]) == (0, "stop", colour)
    moments = [
        {"modality": "visual", "start_s": 0.0, "end_s": 1.0, "similarity": 0.75},
        {"modality": "audio", "start_s": 2.0, "end_s": 3.0, "similarity": 0.5},
    ]
    assert choice["latent_phases"] == [{"position": 3, "k": 6, "num_visual": 4, "num_audio": 2, "moments": moments}]
    assert reply["usage"] == {
        "prompt_tokens": 40,
        "completion_tokens": 7,
        "total_tokens": 47,
        "latent_steps": 6,
    }


def test_the_clip_in_the_request_gives_the_same_answer(server, film) -> None:
    _, by_path = server.ask(film.clip)
    status, by_value = server.ask(film.as_data_uri)
    assert status == 200
    assert by_value["choices"] == by_path["choices"]


def test_limits_of_the_request_reach_the_model(server, film) -> None:
    _, reply = server.ask(film.clip, max_phases=0)
    assert reply["choices"][0]["latent_phases"] == []


def test_sixteen_waiting_requests_share_two_model_calls(server, film, tmp_path) -> None:
    gate = tmp_path / "open"
    with ThreadPoolExecutor(17) as clients:
        held = clients.submit(server.ask, film.clip, f"wait for {gate}")
        server.wait_for_load(open_requests=1)
        waiting = [clients.submit(server.ask, film.clip) for _ in range(16)]
        server.wait_for_load(open_requests=17, waiting_requests=16)
        status, refusal = server.ask(film.clip)
        gate.touch()
        replies = [request.result() for request in (held, *waiting)]
    assert status == 429
    assert refusal["error"]["type"] == "rate_limit_error" and refusal["error"]["code"] == "server_full"
    assert {status for status, _ in replies} == {200}
    texts = [reply["choices"][0]["message"]["content"] for _, reply in replies]
    assert [text.partition("batch of ")[2][0] for text in texts] == ["1", *"8" * 16]
    server.wait_for_load(open_requests=0)


def test_a_client_that_hangs_up_leaves_its_place_to_others(server, film, tmp_path) -> None:
    gate = tmp_path / "open"
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    connection.request("POST", "/v1/chat/completions", json.dumps(server.body(film.clip, f"wait for {gate}")), JSON)
    server.wait_for_load(answering_requests=1)
    connection.close()
    server.wait_for_load(open_requests=0)
    gate.touch()
    assert server.ask(film.clip)[0] == 200


def test_a_stream_is_role_then_phases_then_text_then_done(server, film) -> None:
    lines = _stream(server, server.body(film.clip, stream=True, stream_options={"include_usage": True}))
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    role, phase, text, end, usage = chunks
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert phase["choices"][0]["latent_phases"][0]["k"] == 6
    assert text["choices"][0]["delta"]["content"].endswith(end["choices"][0]["answer"])
    assert end["choices"][0]["finish_reason"] == "stop" and end["choices"][0]["delta"] == {}
    assert usage["choices"] == [] and usage["usage"]["latent_steps"] == 6


def test_a_stream_that_fails_midway_says_so_and_ends(server, film) -> None:
    *_, error, done = _stream(server, server.body(film.clip, "fail", stream=True))
    assert json.loads(error)["error"]["type"] == "server_error"
    assert done == "[DONE]"


def test_a_stream_that_cannot_begin_has_a_status(server) -> None:
    status, reply = server.ask("/etc/hostname", stream=True)
    assert (status, reply["error"]["code"]) == (400, "media_not_allowed")


def _stream(server, body) -> list[str]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), JSON)
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.read().decode().split("\n\n")
    connection.close()
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]


def test_bad_clips_get_a_400_that_says_what_to_do(server, film, tmp_path) -> None:
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(film.clip.read_bytes())
    (film.folder / "escape.mp4").symlink_to(outside)
    (film.folder / "broken.mp4").write_bytes(film.clip.read_bytes()[:3000])
    cases = {
        "escape.mp4": ("media_not_allowed", "allowed_media_dirs"),
        str(outside): ("media_not_allowed", "allowed_media_dirs"),
        f"file://{film.folder}/../{tmp_path.name}/outside.mp4": ("media_not_allowed", "data URI"),
        "broken.mp4": ("media_truncated", "encode it again"),
        "absent.mp4": ("media_missing", "cannot be opened"),
        "data:video/mp4;base64,bm90IGEgdmlkZW8=": ("media_container", "send an mp4"),
        "data:video/mp4;base64,?": ("bad_base64", "not valid base64"),
        "http://127.0.0.1/clip.mp4": ("media_not_allowed", "allowed_media_hosts"),
    }
    for url, (code, advice) in cases.items():
        status, reply = server.ask(url)
        assert (status, reply["error"]["code"]) == (400, code)
        assert advice in reply["error"]["message"]
        assert reply["error"]["type"] == "invalid_request_error"


def test_a_request_without_a_video_gets_a_400_that_says_what_to_do(server) -> None:
    status, reply = server.post({"messages": [{"role": "user", "content": "Which colour?"}]})
    assert status == 400
    assert reply["error"]["code"] == "no_video" and reply["error"]["param"] == "messages"
    assert '"type": "video_url"' in reply["error"]["message"]


def test_clips_over_the_limits_get_a_413(server, film) -> None:
    write_mp4(make_scene(seed=5, index=1, shot_s=2.0), film.folder / "long.mp4", side_px=32)
    status, reply = server.ask("long.mp4")
    assert (status, reply["error"]["code"]) == (413, "media_too_long")
    large = "data:video/mp4;base64," + base64.b64encode(bytes(1_000_100)).decode()
    status, reply = server.ask(large)
    assert (status, reply["error"]["code"]) == (413, "media_too_large")
    status, reply = server.ask("data:video/mp4;base64," + "A" * 4_000_000)
    assert (status, reply["error"]["code"]) == (413, "media_too_large")


def test_an_unknown_model_is_not_found(server, film) -> None:
    status, reply = server.ask(film.clip, model="gpt")
    assert (status, reply["error"]["code"]) == (404, "model_not_found")
    assert "'colours'" in reply["error"]["message"]


def test_a_fault_of_the_model_is_a_500_without_its_inside(server, film) -> None:
    status, reply = server.ask(film.clip, "fail")
    assert status == 500
    assert set(reply["error"]) == {"message", "type", "param", "code"}
    assert "breaks the model" not in reply["error"]["message"]
    assert server.ask(film.clip)[0] == 200


def test_health_and_models(server) -> None:
    assert server.get("/health") == (
        200,
        {
            "status": "ok",
            "model": "colours",
            "open_requests": 0,
            "waiting_requests": 0,
            "answering_requests": 0,
            "max_requests": 17,
            "open_uploads": 0,
            "upload_bytes": 0,
            "max_uploads": 512,
            "max_model_len": 4096,
        },
    )
    status, models = server.get("/v1/models")
    assert (status, models["object"]) == (200, "list")
    [entry] = models["data"]
    assert (entry["id"], entry["object"], entry["method"]) == ("colours", "model", "colours")


def test_wrong_routes_are_answered_in_the_same_shape(server) -> None:
    assert server.get("/v1/nothing")[1]["error"]["code"] == "no_such_route"
    status, reply = server.get("/v1/chat/completions")
    assert (status, reply["error"]["type"]) == (405, "invalid_request_error")
    status, reply = server.post(b"{broken")
    assert (status, reply["error"]["code"]) == (400, "invalid_json")
    status, document = server.get("/openapi.json")
    assert status == 200 and "/v1/chat/completions" in document["paths"]


def test_the_arguments_of_a_ray_service_are_the_config() -> None:
    args = {"model": "models:/omni@champion", "allowed_media_dirs": ["/data"], "tracking_uri": None, "port": 9}
    [config, _] = build_app(args)._bound_deployment.init_args
    assert config == ServeConfig(model="models:/omni@champion", allowed_media_dirs=("/data",), port=9)
    # Ray Serve calls a builder with one parameter, the mapping of its `args`.
    assert len(inspect.signature(build_app).parameters) == 1
    with pytest.raises(ConfigError, match="did you mean 'max_batch_size'"):
        build_app({"model": "m", "max_batchsize": 2})
