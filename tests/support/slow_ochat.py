"""`python -m ochat_train` with steps that take longer, to be started by a launcher and signalled in the middle."""

import functools
import sys

from ochat_train.cli.main import main
from ochat_train.training import run
from ochat_train.training.hooks import Hooks
from tests.support.faults import SLOW_STEP_SECONDS
from tests.support.train_worker import StepFault

if __name__ == "__main__":
    run.train = functools.partial(run.train, hooks=Hooks(before_step=StepFault({"slow": SLOW_STEP_SECONDS})))
    sys.exit(main(["train", *sys.argv[1:]]))
