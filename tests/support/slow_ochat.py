"""`python -m ochat_train` with steps that take longer, to be started by a launcher and signalled in the middle."""

import functools
import sys
from pathlib import Path

from ochat_train.cli.main import main
from ochat_train.training import run
from ochat_train.training.hooks import Hooks
from tests.support.faults import slow_steps
from tests.support.train_worker import StepFault

if __name__ == "__main__":
    run.train = functools.partial(run.train, hooks=Hooks(before_step=StepFault(slow_steps(Path(sys.argv[1])))))
    sys.exit(main(["train", *sys.argv[1:]]))
