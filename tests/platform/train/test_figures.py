from __future__ import annotations

import pytest
import torch

from omni_platform.train.figures import Signals, Window, reduce_step

CPU = torch.device("cpu")


def outputs(loss: float, text: float, tokens: int) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss), "text": torch.tensor(text), "tokens": torch.tensor(tokens)}


def test_terms_are_averaged_and_counts_summed(process_group: None) -> None:
    step = reduce_step([outputs(1.0, 4.0, 10), outputs(2.0, 8.0, 30)], Signals(data_wait_s=0.5), device=CPU)
    assert step.terms == {"loss": 1.5, "text": 6.0}
    assert step.counts == {"tokens": 40}
    assert (step.data_wait_s, step.stop) == (0.5, False)
    assert reduce_step([outputs(1.0, 4.0, 10)], Signals(data_wait_s=0.0, stop=True), device=CPU).stop


def test_outputs_that_the_workers_could_not_add_up_are_refused(process_group: None) -> None:
    with pytest.raises(ValueError, match="other names for another"):
        reduce_step([outputs(1.0, 1.0, 1), {"loss": torch.tensor(1.0)}], Signals(data_wait_s=0), device=CPU)
    with pytest.raises(ValueError, match="integer tensor"):
        reduce_step([{"loss": torch.tensor(1.0), "tokens": torch.tensor(1.0)}], Signals(data_wait_s=0), device=CPU)


def test_a_window_gives_means_shares_and_speed_then_starts_anew() -> None:
    window = Window({})
    window.add({"loss": 2.0, "latent": 1.0}, {"tokens": 8}, 0.0)
    window.add({"loss": 4.0, "latent": 2.0}, {"tokens": 8}, 0.0)
    figures = window.close({"latent": 0.5, "absent": 1.0})
    assert (figures["loss"], figures["latent"], figures["share/latent"]) == (3.0, 1.5, 0.25)
    assert figures["tokens_per_s"] > 0
    assert figures["data_wait_share"] == 0.0
    assert "share/absent" not in figures
    assert window.sums == {}


def test_a_window_goes_on_from_what_a_checkpoint_kept() -> None:
    whole = Window({})
    for loss in (0.1, 0.2, 0.7):
        whole.add({"loss": loss}, {}, 0.0)
    begun = Window({})
    begun.add({"loss": 0.1}, {}, 0.0)
    begun.add({"loss": 0.2}, {}, 0.0)
    resumed = Window(begun.sums)
    resumed.add({"loss": 0.7}, {}, 0.0)
    assert resumed.close({})["loss"] == whole.close({})["loss"]
