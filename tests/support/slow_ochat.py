"""`python -m ochat_train` with steps that take longer, to be started by a launcher and signalled in the middle."""

import sys

from ochat_train.cli.main import main
from tests.support.faults import SLOW_STEP_SECONDS
from tests.support.train_worker import install

if __name__ == "__main__":
    install({"rank": 0, "slow": SLOW_STEP_SECONDS})
    sys.exit(main(["train", *sys.argv[1:]]))
