"""`ochat export` that takes a minute before the folder gets its name, to be signalled in the middle."""

import sys
import time
from pathlib import Path

from ochat_train.cli.main import main
from ochat_train.export import export


def _wait(folder: Path) -> None:
    print("written", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    export._set_modes = _wait
    sys.exit(main(["export", *sys.argv[1:]]))
