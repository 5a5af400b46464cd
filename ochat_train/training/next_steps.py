"""What to do with a run that is done."""

from __future__ import annotations

import shlex
from pathlib import Path


def next_text(output_dir: Path) -> str:
    """The commands that usually follow, ready to be copied into a shell."""
    run, out = (shlex.quote(str(path)) for path in (output_dir, output_dir / "export"))
    return f"done; next:\n  ochat report {run}\n  ochat export {run} --out {out}"
