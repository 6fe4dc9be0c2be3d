"""A config is exactly what the file and the words say, or an error that names the mistake."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from omni_platform.config import ConfigError, fingerprint, load_config, parse_args, to_dict, to_yaml


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    learning_rate: float = 1e-3
    """Peak step size."""
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of nothing."""

    output_dir: str
    """Where results go."""
    seed: int = 0
    bf16: bool = False
    families: tuple[str, ...] = ("a",)
    backend: Literal["gloo", "nccl"] = "gloo"
    num_workers: int | tuple[int, int] = 1
    optimizer: Optimizer = field(default_factory=Optimizer)
    second: Optimizer | None = None
    task: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path("x")
    tracking_uri: str | None = field(default=None, metadata={"env": "TEST_TRACKING_URI"})

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


def _file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return str(path)


def test_values_come_from_the_words_then_the_file_then_the_environment_then_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_TRACKING_URI", "from-environment")
    text = "output_dir: here\nseed: 3\noptimizer: {learning_rate: 1e-4, betas: [0.8, 1]}\n"
    run = load_config(Run, _file(tmp_path, text), ["seed=5", "optimizer.warmup_ratio=0.1"])
    assert run == Run(
        output_dir="here",
        seed=5,
        optimizer=Optimizer(learning_rate=1e-4, betas=(0.8, 1.0), warmup_ratio=0.1),
        tracking_uri="from-environment",
    )
    assert isinstance(run.optimizer.betas[1], float)
    assert load_config(Run, None, ["output_dir=x", "tracking_uri=word"]).tracking_uri == "word"


def test_words_are_read_by_the_type_of_the_field():
    words = ["output_dir=123", "families=[b, c]", "num_workers=[1, 4]", "bf16=true", "second.learning_rate=2"]
    run = load_config(Run, None, [*words, "task.model.dim=8", "task.name=toy", "folder=/tmp", "tracking_uri=null"])
    assert (run.output_dir, run.families, run.num_workers, run.bf16) == ("123", ("b", "c"), (1, 4), True)
    assert run.second == Optimizer(learning_rate=2.0)
    assert run.task == {"model": {"dim": 8}, "name": "toy"}
    assert run.folder == Path("/tmp") and run.tracking_uri is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("output_dir: a\nlerning_rate: 1", ["run.yaml", "'lerning_rate'", "'optimizer.learning_rate'"]),
        ("output_dir: a\nlearning_rate: 1", ["'learning_rate'", "'optimizer.learning_rate'"]),
        (
            "output_dir: a\noptimizer: {learning_rat: 1}",
            ["'optimizer.learning_rat'", "'optimizer.learning_rate'"],
        ),
        ("output_dir: a\nzzzz: 1", ["'zzzz'", "known keys", "output_dir"]),
        ("output_dir: a\nseed: 1.5", ["'seed'", "int", "1.5"]),
        ("output_dir: a\nseed: true", ["'seed'", "int", "True"]),
        ("output_dir: a\nbf16: 1", ["'bf16'", "bool"]),
        ("output_dir: 3", ["'output_dir'", "str"]),
        ("output_dir: a\nbackend: glo", ["'backend'", "'gloo', 'nccl'", "did you mean 'gloo'"]),
        ("output_dir: a\noptimizer: {betas: [1, 2, 3]}", ["'optimizer.betas'"]),
        ("output_dir: a\noptimizer: {betas: [1, b]}", ["'optimizer.betas[1]'", "float"]),
        ("seed: 1", ["'output_dir' is required", "Where results go."]),
        ("output_dir: a\nseed: -1", ["run.yaml", "seed must not be negative"]),
        ("output_dir: a\nseed: 1\nseed: 2", ["line 3", "'seed' is given twice"]),
        ("- a", ["run.yaml", "list"]),
        ("output_dir: [", ["run.yaml", "not valid YAML"]),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, text, expected):
    with pytest.raises(ConfigError) as error:
        load_config(Run, _file(tmp_path, text))
    for part in expected:
        assert part in str(error.value)


def test_a_mistake_on_the_command_line_is_named():
    for words, part in [(["seed"], "'seed'"), (["output_dir=a", "optimizr.learning_rate=1"], "'optimizer'")]:
        with pytest.raises(ConfigError, match=part):
            load_config(Run, None, words)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load_config(Run, "nowhere.yaml")


def test_the_resolved_config_reads_back_and_its_fingerprint_follows_every_value(tmp_path):
    run = load_config(Run, None, ["output_dir=a", "task.x=[1, 2]", "second.learning_rate=3"])
    assert load_config(Run, _file(tmp_path, to_yaml(run))) == run
    assert to_dict(run)["optimizer"]["betas"] == [0.9, 0.999]
    other = load_config(Run, None, ["output_dir=a", "task.x=[1, 3]", "second.learning_rate=3"])
    assert fingerprint(run) != fingerprint(other)
    assert fingerprint(run) == fingerprint(to_dict(run)) and len(fingerprint(run)) == 16


def test_parse_args_reads_words_and_ends_the_process_on_a_mistake(tmp_path, capsys):
    path = _file(tmp_path, "output_dir: a")
    assert parse_args(Run, ["--config", path, "seed=2"]) == Run(output_dir="a", seed=2)
    assert parse_args(Run, [f"--config={path}", "--seed=2"]) == Run(output_dir="a", seed=2)
    for words in (["--config"], ["--config", path, "--config", path], ["seed"], ["sed=2", "--config", path]):
        with pytest.raises(SystemExit) as end:
            parse_args(Run, words)
        assert str(end.value.code).startswith("config error: ")
    with pytest.raises(SystemExit) as end:
        parse_args(Run, ["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for part in ("optimizer.learning_rate: float = 0.001", "Peak step size.", "output_dir: str (required)"):
        assert part in printed
    assert "TEST_TRACKING_URI" in printed
