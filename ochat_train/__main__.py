"""`python -m ochat_train RECIPE`: what a launcher starts on every rank, the same as `ochat train RECIPE`."""

import sys

from ochat_train.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
