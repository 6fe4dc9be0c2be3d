"""What two workers of one machine need while a model is loaded for ZeRO-3: share by share, against each of them whole.

A toy model with very wide layers (about 300 MB of weights), two processes over gloo on the CPU, so that each worker's
share lies in the same memory that is measured. Memory is what the processes own (mapped files of the checkpoint, which
workers share, are left out), sampled while they load, above what they had before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WIDE = 90_000
MODES = ("whole", "sharded")


def main() -> None:
    if len(sys.argv) > 1:
        work(*sys.argv[1:])
        return
    with tempfile.TemporaryDirectory() as folder:
        weight_bytes = make_model(Path(folder))
        peaks = {mode: load_in_two(Path(folder), mode) for mode in MODES}
    figures: dict[str, float] = {"weights_mb": round(weight_bytes / 1e6)}
    for mode in MODES:
        both, most = sum(peaks[mode]), max(peaks[mode])
        figures[f"{mode}_peak_of_both_vs_weights"] = round(both / weight_bytes, 2)
        figures[f"{mode}_peak_of_one_vs_weights"] = round(most / weight_bytes, 2)
        print(
            f"{mode:>8}: both workers {both / weight_bytes:.2f} x the weights, the larger {most / weight_bytes:.2f} x"
        )
    figures["sharded_vs_whole"] = round(sum(peaks["sharded"]) / sum(peaks["whole"]), 3)
    print(json.dumps({"bench": "sharded_load", "figures": figures}))


def make_model(folder: Path) -> int:
    """A toy Thinker whose layers are very wide, saved; returns the bytes of its weights."""
    from omni_model.folder import load_backbone
    from omni_model.tiny import TinyConfig, build_tiny

    loaded = load_backbone("tiny")
    wide = build_tiny(TinyConfig(intermediate_size=WIDE), loaded.vocabulary)
    wide.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in wide.parameters())


def load_in_two(folder: Path, mode: str) -> list[int]:
    """Peak bytes of both workers while they load."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), mode, str(rank)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [worker.communicate(timeout=300) for worker in workers]
    if any(worker.returncode for worker in workers):
        raise SystemExit("\n".join(errors for _, errors in outputs))
    return [int(printed.split()[-1]) for printed, _ in outputs]


def work(folder: str, mode: str, rank: str) -> None:
    """One worker: load for ZeRO-3 as the mode says, and print the peak of memory of its own."""
    import torch
    import torch.distributed as dist

    from omni_model.task import build_task
    from omni_platform.train.config import TrainConfig
    from omni_platform.train.engine import import_deepspeed, make_engine
    from omni_platform.train.sharded import build_sharded

    device = torch.device("cpu")
    torch.set_num_threads(1)
    import_deepspeed(device)
    rendezvous = f"file://{folder}/rendezvous-{mode}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=int(rank), world_size=2)
    # Adapters alone learn, so that optimizer states do not hide what loading takes.
    task = {"model_name_or_path": folder, "method": "sft", "lora_rank": 1}
    config = TrainConfig(run_name="r", dataset_dir="d", output_dir="o", zero_stage=3, num_workers=2, task=task)
    before = own_bytes()
    watch = PeakWatch()
    built = build_sharded(config, build_task, device) if mode == "sharded" else build_task(task)
    make_engine(config, built, device)
    peak = watch.stop()
    dist.barrier()
    dist.destroy_process_group()
    print(peak - before)


class PeakWatch:
    """Samples the memory of this process in a thread."""

    def __init__(self) -> None:
        self._peak, self._done = own_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The largest value seen."""
        self._done.set()
        self._thread.join()
        return max(self._peak, own_bytes())

    def _run(self) -> None:
        while not self._done.is_set():
            self._peak = max(self._peak, own_bytes())
            time.sleep(0.002)


def own_bytes() -> int:
    """Resident memory of this process that belongs to no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status tells no RssAnon: this benchmark needs Linux")


if __name__ == "__main__":
    main()
