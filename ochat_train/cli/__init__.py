"""The command `ochat`: one file a verb."""

from ochat_train.cli.main import run_as_script

__all__ = ["run_as_script"]
