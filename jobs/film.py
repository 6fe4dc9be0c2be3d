"""Render the film: python jobs/film.py --config jobs/configs/film/train.yaml

Real mp4 files with known pictures, tones and times, questions that need both senses, and a manifest.
"""

from __future__ import annotations

from omni_platform.config import parse_args
from omni_platform.lease import refusals_in_one_line
from omni_platform.media.film_folder import FilmConfig, write_film

CONFIG = FilmConfig


@refusals_in_one_line()
def main() -> None:
    config = parse_args(FilmConfig)
    card, reused = write_film(config)
    what = f"{card.counts['clips']} clips, {card.counts['samples']} questions, {card.counts['bad_clips']} broken"
    print(f"film: {what}; {'reused' if reused else 'rendered'}: {config.output_dir}", flush=True)


if __name__ == "__main__":
    main()
