"""The `ochat` script as a module, for tests that start it in a separate process."""

from ochat_train.cli.main import run_as_script

if __name__ == "__main__":
    run_as_script()
