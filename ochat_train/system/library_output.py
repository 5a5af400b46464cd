"""Progress bars and notices of other libraries, between which ours would be lost."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Keep transformers' loading bars, DeepSpeed's notices and known harmless warnings off the screen."""
    import torch
    from transformers.utils import logging as transformers_logging

    # otherwise DeepSpeed prints that it guesses
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    transformers_logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # PEFT imports these: kernels for other machines are missing, and classes are registered in an old way
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that newer torch calls deprecated, once per rank and step
    warnings.filterwarnings("ignore", message=".*is deprecated", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", message="Argument aux_data", category=UserWarning)  # flash-attn-4 compiles
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`", category=UserWarning)
    # when it compiles a layer with `matmuls`, torch warns about in-place operations in checkpointed code; a decoder
    # layer has none
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device", category=UserWarning)  # the one we set
