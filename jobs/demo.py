"""From clips to a served model in one command: python jobs/demo.py

Runs the same jobs that a team submits to a cluster, one after the other, each with its own YAML, and collects what
they say into outputs/demo/summary.json. A second run reuses every stage whose inputs, settings and code are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import omni_model
import omni_platform
import omni_serving
from omni_model.fingerprint import fingerprint_model
from omni_model.folder import TINY_BASE
from omni_platform import storage
from omni_platform.artifacts import read_card
from omni_platform.config import parse_args
from omni_serving.local import Server

JOBS = Path(__file__).resolve().parent
# In a checkout everything happens at its root; the jobs of an installed wheel work where they are called.
ROOT = JOBS.parent if JOBS.name == "jobs" else Path.cwd()


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Where the demo lives and how large it is."""

    output_dir: str = "outputs/demo"
    train_clips: int = 512
    eval_clips: int = 64
    train_config: str = "jobs/configs/train/tiny_cpu.yaml"
    real_clip: str | None = None
    """A clip of your own, with sound; goes through preprocess and serve as well."""
    port: int = 8123

    def __post_init__(self) -> None:
        storage.require_local(self.output_dir, "output_dir")


CONFIG = DemoConfig


def main() -> None:
    config = parse_args(DemoConfig)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # one bar per actor says nothing here
    demo = Demo(config)
    out = demo.out
    film = ["jobs/film.py", "--config", "jobs/configs/film/train.yaml"]
    demo.run("film", [*film, f"output_dir={out}/film/train", f"num_clips={config.train_clips}", "bad_clips=4"])
    film = ["jobs/film.py", "--config", "jobs/configs/film/eval.yaml"]
    demo.run("film_eval", [*film, f"output_dir={out}/film/eval", f"num_clips={config.eval_clips}"])
    for split in ("train", "eval"):
        demo.preprocess(f"preprocess_{split}", manifest=f"{out}/film/{split}", to=f"{out}/anchors/{split}")
    if config.real_clip:
        manifest = demo.write_real_manifest(ROOT / config.real_clip)
        demo.preprocess("preprocess_real", manifest=str(manifest), to=f"{out}/anchors/real")
    # Other inputs or settings are another run: a finished one would be taken for this one.
    train = ["jobs/train.py", "--config", config.train_config]
    train += [f"run_name=demo-{demo.fingerprint_with(config.train_config)}"]
    train += [f"dataset_dir={out}/anchors/train"]
    demo.run("train", [*train, f"output_dir={out}/train", f"tracking_uri={demo.tracking_uri}"])
    demo.evaluate("evaluate_base", model=str(TINY_BASE), conditions="[own]")
    demo.evaluate("evaluate", model="models:/latentomni@candidate", run_id=demo.trained["mlflow"]["run_id"])
    demo.promote()
    answers = demo.serve()
    summary = demo.summarise(answers)
    (Path(out) / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _print(summary, Path(out) / "summary.json")


@dataclass
class Demo:
    """Runs stages, remembers their seconds, and knows where they leave things."""

    config: DemoConfig
    seconds: dict[str, float] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    _chain: str = field(default_factory=lambda: _code_fingerprint())

    @property
    def out(self) -> str:
        return self.config.output_dir

    def fingerprint_with(self, config: str) -> str:
        """Changes with the code, with every stage so far, and with the text of a config."""
        return hashlib.sha256(f"{self._chain}\0{(ROOT / located(config)).read_text()}".encode()).hexdigest()[:8]

    @property
    def tracking_uri(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.out}/mlflow/mlflow.db"

    @property
    def trained(self) -> dict[str, Any]:
        return _read_json(Path(self.out) / "train" / "summary.json")

    def run(self, stage: str, command: list[str]) -> None:
        """Run a job unless the same command has succeeded on the same inputs with the same code before."""
        command = [located(word) for word in command]
        stamp = Path(self.out) / "stages" / f"{stage}.json"
        texts = [word if not (ROOT / word).is_file() else (ROOT / word).read_text() for word in command]
        self._chain = hashlib.sha256("\0".join([self._chain, *texts]).encode()).hexdigest()
        # What has been removed since is made again, whatever its stamp says.
        results = [Path(word.partition("=")[2]) for word in command if word.partition("=")[0].endswith("output_dir")]
        there = all((ROOT / result).exists() for result in results)
        if there and stamp.is_file() and _read_json(stamp)["chain"] == self._chain:
            self.seconds[stage] = _read_json(stamp)["seconds"]
            self.reused.append(stage)
            print(f"== {stage}: reused, nothing has changed", flush=True)
            return
        print(f"\n== {stage}: python {shlex.join(command)}", flush=True)
        started = time.monotonic()
        done = subprocess.run([sys.executable, *command], cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"stage {stage} failed with exit code {done.returncode}; its output is above")
        self.seconds[stage] = round(time.monotonic() - started, 1)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(json.dumps({"chain": self._chain, "seconds": self.seconds[stage]}))

    def preprocess(self, stage: str, *, manifest: str, to: str) -> None:
        command = ["jobs/preprocess.py", "--config", "jobs/configs/preprocess/film_tiny.yaml"]
        self.run(stage, [*command, f"data.manifest={manifest}", f"data.output_dir={to}"])

    def evaluate(self, stage: str, *, model: str, run_id: str = "", conditions: str = "") -> None:
        command = ["jobs/evaluate.py", "--config", "jobs/configs/evaluate/film.yaml", f"model={model}"]
        command += [f"dataset_dir={self.out}/anchors/eval", f"output_dir={self.out}/{stage}"]
        command += [f"tracking_uri={self.tracking_uri}"]
        command += [f"run_id={run_id}"] if run_id else []
        command += [f"conditions={conditions}"] if conditions else []
        self.run(stage, command)

    def promote(self) -> None:
        """Serve the version that was just evaluated: by its number, so that a reused stage is known by it."""
        version = self.trained["mlflow"]["model_version"]
        command = ["jobs/promote.py", "name=latentomni", f"which={version}", f"tracking_uri={self.tracking_uri}"]
        self.run("promote", command)

    def write_real_manifest(self, clip: Path) -> Path:
        """A manifest with one question about a clip that the film did not make."""
        folder = Path(self.out) / "real"
        folder.mkdir(parents=True, exist_ok=True)
        row = {
            "id": "real-0",
            "clip": str(clip.resolve()),
            "question": "Which colour is on screen when the low tone sounds?",
            "answer": "unknown",
            "trajectory": [{"text": "The low tone:"}, {"segment": [2.0, 4.0]}, {"text": " unknown. Answer: unknown"}],
        }
        (folder / "manifest.jsonl").write_text(json.dumps(row) + "\n")
        # The commands name the clip's path alone.
        self._chain = hashlib.sha256(self._chain.encode() + clip.read_bytes()).hexdigest()
        return folder

    def serve(self) -> dict[str, Any]:
        """Deploy the registered model, ask about a held-out clip and the real one, and take it down again."""
        started = time.monotonic()
        question = _first_question(Path(self.out) / "film" / "eval" / "manifest.jsonl")
        clip = Path(self.out) / "film" / "eval" / question["clip"]
        real = ROOT / self.config.real_clip if self.config.real_clip else None
        media = [str(path.resolve().parent) for path in (clip, real) if path is not None]
        command = [located("jobs/serve.py"), "--config", located("jobs/configs/serve/local.yaml")]
        command += [f"port={self.config.port}"]
        command += [f"tracking_uri={self.tracking_uri}", f"allowed_media_dirs=[{', '.join(media)}]"]
        print(f"\n== serve: python {shlex.join(command)}", flush=True)
        with Server([sys.executable, *command], cwd=ROOT, port=self.config.port) as server:
            answer = {**server.ask(question["question"], clip), "expected": question["answer"]}
            answers = {"serve": answer}
            if real is not None:
                answers["serve_real_clip"] = server.ask(question["question"], real)
        self.seconds["serve"] = round(time.monotonic() - started, 1)
        return answers

    def summarise(self, answers: dict[str, Any]) -> dict[str, Any]:
        """Every figure is read from what the stages left behind."""
        counts = read_card(f"{self.out}/anchors/train").counts
        held_out = read_card(f"{self.out}/anchors/eval").counts
        report = _read_json(Path(self.out) / "evaluate" / "report.json")
        base = _read_json(Path(self.out) / "evaluate_base" / "report.json")
        own = report["conditions"]["own"]["all"]
        blind = {name: report["conditions"][name]["all"]["accuracy"] for name in ("no_audio", "no_video", "neither")}
        latents = {n: f["all"]["accuracy"] for n, f in report["conditions"].items() if n.startswith("latents_")}
        trained = self.trained
        return {
            "clips": counts["clips"] + held_out["clips"],
            "segments": counts["segments"] + held_out["segments"],
            "quarantined": counts["quarantined"] + held_out["quarantined"],
            "train": {k: v for k, v in trained.items() if k not in ("mlflow", "export")},
            "eval": {
                "n": report["n"],
                "accuracy": own["accuracy"],
                "interval": [own["low"], own["high"]],
                "chance": report["chance"],
                "blind_accuracy": max(blind.values()),
                "blind": blind,
                "base_accuracy": base["conditions"]["own"]["all"]["accuracy"],
                "by_type": {k: v["accuracy"] for k, v in report["conditions"]["own"]["by_type"].items()},
                "own": own["accuracy"],
                **latents,
                "cost_of_other_latents": report["costs"].get("latents_other"),
                "looked_right_share": report["looked_right_share"],
            },
            "mlflow": trained["mlflow"],
            **answers,
            "seconds": {**self.seconds, "total": round(sum(self.seconds.values()), 1)},
            "reused": self.reused,
        }


def located(word: str) -> str:
    """A word of a command with the place of a job or config of the wheel in it; in a checkout as it is."""
    return str(JOBS / word.removeprefix("jobs/")) if JOBS.name != "jobs" and word.startswith("jobs/") else word


def _code_fingerprint() -> str:
    digest = hashlib.sha256()
    packages = (Path(str(module.__file__)).parent for module in (omni_platform, omni_model, omni_serving))
    for folder in (*packages, JOBS):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    digest.update(fingerprint_model(TINY_BASE).encode())
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _first_question(manifest: Path) -> dict[str, Any]:
    return json.loads(manifest.read_text().splitlines()[0])


def _print(summary: dict[str, Any], path: Path) -> None:
    evaluation, served = summary["eval"], summary["serve"]
    low, high = evaluation["interval"]
    reused = ", reused stages with their first time" if summary["reused"] else ""
    looks = [
        f"{m['modality']} {m['start_s']:.0f}-{m['end_s']:.0f} s" for p in served["latent_phases"] for m in p["moments"]
    ]
    print(
        f"\nheld-out accuracy {evaluation['accuracy']:.3f} [{low:.3f}, {high:.3f}] on {evaluation['n']} questions; "
        f"chance {evaluation['chance']:.3f}, best blind control {evaluation['blind_accuracy']:.3f}, "
        f"before training {evaluation['base_accuracy']:.3f}\n"
        f"with other latents: "
        + ", ".join(f"{k.removeprefix('latents_')} {v:.3f}" for k, v in evaluation.items() if k.startswith("latents_"))
        + f"\nserved: {served['question']} -> {served['answer']} (looked at {', '.join(looks) or 'nothing'})\n"
        f"{summary['seconds']['total']:.0f} s in all{reused}; "
        f"figures in {path}, pictures in "
        f"{path.parent}/train/loss_curves.png, the whole evaluation in "
        f"{path.parent}/evaluate/report.html"
    )


if __name__ == "__main__":
    main()
