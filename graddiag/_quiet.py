"""transformers without its progress bars and warnings, for the length of one load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers reports errors only and shows no bars; afterwards both are as before, also when it raises.

    Downloads from the hub keep their bars: they can take minutes.
    """
    verbosity, bars, no_downloads = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
    )
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    _show_downloads(not no_downloads)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        _show_downloads(not no_downloads)


def _show_downloads(shown: bool) -> None:
    """The switch of transformers moves that of the hub too: put it where it was."""
    if shown:
        enable_progress_bars()
    else:
        disable_progress_bars()
