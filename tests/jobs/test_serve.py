"""`jobs/serve.py` as a person starts it: a registered model by alias, an answer over HTTP, SIGTERM, exit 0."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from omni_model.folder import TINY_BASE, Preparation, save_folder
from omni_model.methods import make_method
from omni_model.qwen_omni import QwenOmniBackbone
from omni_model.reason import Ask, Reasoner, load_reasoner
from omni_model.tiny import TinyConfig, build_tiny, train_tokenizer
from omni_model.vocabulary import read_vocabulary
from omni_platform.config import load_config
from omni_platform.media.decode import decode_clip
from omni_platform.media.film import corpus
from omni_platform.media.scene import make_scene
from omni_platform.media.synth import write_mp4
from omni_platform.tracking import connect, promote, register_model
from omni_serving.config import ServeConfig
from omni_serving.deploy import deployed

ROOT = Path(__file__).parents[2]
QUESTION = "Which colour is on screen when the low tone sounds?"


def test_a_registered_model_is_served_and_answers_as_it_does_without_a_server(tmp_path: Path) -> None:
    clip = tmp_path / "media" / "clip.mp4"
    clip.parent.mkdir()
    write_mp4(make_scene(seed=3, index=0), clip)
    folder = _export_tiny(tmp_path / "model")
    reasoner = load_reasoner(folder, device="cpu")
    ask = _ask(reasoner, clip)
    _make_it_look_first(folder, reasoner, ask)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    _register(folder, uri, tmp_path)

    port = _free_port()
    words = ["model=models:/tiny@best", f"tracking_uri={uri}", f"port={port}", "device=cpu"]
    process = _start([*words, f"allowed_media_dirs=[{clip.parent}]", "max_new_tokens=12"])
    try:
        greeting = _read_greeting(process)
        reply = _post(f"http://127.0.0.1:{port}", _body(clip))
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert f"serving tiny@best at http://127.0.0.1:{port}" in greeting and "curl" in greeting
    assert process.returncode == 0, rest
    assert rest.splitlines()[-1] == "stopped"

    [expected] = load_reasoner(folder, device="cpu").answer([ask], max_new_tokens=12, max_phases=2)
    assert expected.phases, "the model was made to look at least once"
    [choice] = reply["choices"]
    assert choice["message"]["content"] == expected.text
    assert choice["finish_reason"] == expected.finish_reason
    assert reply["usage"]["prompt_tokens"] == expected.prompt_tokens
    assert reply["usage"]["latent_steps"] == expected.latent_steps == 6 * len(expected.phases)
    phases = [{**asdict(phase), "k": 6} for phase in expected.phases]
    assert choice["latent_phases"] == json.loads(json.dumps(phases))


def test_a_taken_port_is_refused_by_name() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ValueError, match=f"127.0.0.1:{port} .*port="),
            deployed(ServeConfig(model="m", port=port)),
        ):
            pass


def test_a_model_that_is_not_there_is_reported_before_ray_starts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    registry = f"tracking_uri=sqlite:///{tmp_path}/mlflow.db"
    for words, complaint in (
        (["model=/nonexistent"], "serve: model=/nonexistent: no such folder; give an exported model, or models:/"),
        ([f"model={tmp_path}/empty"], "the folder has no method.json, so it is not an exported model"),
        (["model=models:/nobody@champion", registry], "models:/nobody@champion is not in the registry"),
        ([f"model={TINY_BASE}", "api_keys_env=OMNI_ABSENT"], "serve: api_keys_env=OMNI_ABSENT holds no keys"),
    ):
        # Whoever reads these modules has begun to start the server.
        probe = (
            "import sys, runpy\n"
            "try: runpy.run_path('jobs/serve.py', run_name='__main__')\n"
            "finally: print('imported:', [m for m in ('ray', 'torch') if m in sys.modules])"
        )
        command = [sys.executable, "-c", probe, *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1 and "imported: []" in done.stdout
        last = done.stderr.splitlines()[-1]
        assert complaint in last and "Traceback" not in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "jobs/configs/serve").glob("*.yaml")), ids=lambda p: p.name)
def test_every_serve_config_loads(path: Path) -> None:
    assert load_config(ServeConfig, path).model_name.endswith("@champion")


def _export_tiny(folder: Path) -> Path:
    tokenizer = train_tokenizer(corpus())
    vocabulary = read_vocabulary(tokenizer)
    backbone = QwenOmniBackbone(build_tiny(TinyConfig(), vocabulary))
    method = make_method("latent_omni", {"num_visual": 4, "num_audio": 2, "sync_weight": 0.0})
    heads = method.build_heads(backbone.width)
    save_folder(
        folder,
        backbone=backbone,
        tokenizer=tokenizer,
        method=method,
        heads=heads,
        preparation=Preparation(fps=2.0, fps_max_frames=16),
    )
    return folder


def _ask(reasoner: Reasoner, clip: Path) -> Ask:
    decoded = decode_clip(clip, fps=reasoner.fps, max_frames=reasoner.max_frames)
    return Ask(question=QUESTION, frames=decoded.frames, sample_fps=decoded.sample_fps, waveform=decoded.waveform)


def _make_it_look_first(folder: Path, reasoner: Reasoner, ask: Ask) -> None:
    """Point the trigger's output row at the state after this prompt: untrained weights rarely open a phase."""
    thinker = reasoner._backbone.thinker
    states: list[torch.Tensor] = []
    hook = thinker.lm_head.register_forward_pre_hook(lambda module, args: states.append(args[0].detach()))
    reasoner.answer([ask], max_new_tokens=1)
    hook.remove()
    trigger = reasoner._model.loaded.vocabulary.trigger
    with torch.no_grad():
        thinker.lm_head.weight[trigger] = states[0].reshape(-1, states[0].shape[-1])[-1]
    thinker.save_pretrained(folder)


def _register(folder: Path, uri: str, output_dir: Path) -> None:
    client = connect(uri)
    run = client.create_run(client.create_experiment("test", artifact_location=str(output_dir / "artifacts")))
    register_model(folder, "tiny", run.info.run_id, tracking_uri=uri)
    promote("tiny", "candidate", to="best", tracking_uri=uri)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "jobs/serve.py", "--config", "jobs/configs/serve/local.yaml", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("RAY_ADDRESS", None)
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


def _read_greeting(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or not lines[-1].startswith("try: curl"):
        line = process.stdout.readline()
        assert line, f"the job ended before it served: {lines}"
        lines.append(line)
    return "".join(lines)


def _body(clip: Path) -> dict:
    content = [{"type": "text", "text": QUESTION}, {"type": "video", "video": str(clip)}]
    return {"model": "tiny@best", "messages": [{"role": "user", "content": content}], "max_phases": 2}


def _post(url: str, body: dict) -> dict:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.loads(response.read())
