"""Leave the terminal to our own lines: the libraries' progress and reports go."""

import logging
import os
import warnings

from lightpeft.cli.launched import index_of_process


def quieten() -> None:
    """Before anything is imported: what the environment, logging and warnings decide."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("lightpeft").setLevel(logging.INFO if index_of_process() == 0 else logging.ERROR)
    if index_of_process() > 0:  # the first one says what all would say
        logging.getLogger().setLevel(logging.ERROR)
        warnings.filterwarnings("ignore")
    # An unreachable hub is said once, by us, and not at every attempt to reach it.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # It says at each import which faster kernels it does not find, whether a run quantises or not.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # DeepSpeed 0.19 uses names that torch 2.13 has newer ones for.
    warnings.filterwarnings("ignore", message="`torch.distributed.*` is deprecated")
    # peft 0.21 asks for it under the old name; nobody who runs a command can do anything about that.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


def quieten_transformers() -> None:
    """Once a verb begins its work: this imports transformers."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
