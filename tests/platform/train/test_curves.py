from __future__ import annotations

import io

import matplotlib.image
import numpy as np

from omni_platform.train.curves import draw_curves


def test_every_history_gets_a_panel() -> None:
    sizes = []
    for count in (1, 3, 4):
        histories = {f"term{i}": {1: 2.0, 2: 1.0, 5: 0.5} for i in range(count)}
        png = draw_curves({**histories, "never noted": {}}, title="run")
        picture = matplotlib.image.imread(io.BytesIO(png))
        sizes.append(picture.shape[:2])
        columns = np.array_split(picture[..., :3].min(-1), 3, axis=1)
        drawn = [bool((column < 0.5).any()) for column in columns]
        assert drawn == [True, True, True] if count > 2 else drawn[0]
    assert sizes[0] == sizes[1]
    assert sizes[2][0] > sizes[1][0]
