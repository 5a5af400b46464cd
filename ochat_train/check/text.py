"""The findings of `ochat check` as text and as JSON."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.text_rules import visible
from ochat_train.check.findings import Finding


def check_report(path: Path, findings: Sequence[Finding]) -> dict[str, Any]:
    """The document of `ochat check --json`."""
    return {"recipe": str(path), **findings_report(findings)}


def findings_report(findings: Sequence[Finding]) -> dict[str, Any]:
    """The document of `ochat doctor --json`."""
    count = Counter(finding.level for finding in findings)
    return {
        "problems": count["problem"],
        "warnings": count["warning"],
        "findings": [
            {
                "level": finding.level,
                "area": finding.area,
                "finding": finding.finding,
                "remedy": finding.remedy,
                "place": finding.place,
                "problem": finding.problem,
                "seconds": dict(finding.seconds),
            }
            for finding in findings
        ],
    }


def check_text(findings: Sequence[Finding]) -> str:
    """The findings as lines `level  area  finding`, remedies below. On a terminal all but rows of data are wrapped."""
    width = max(len(finding.area) for finding in findings)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = []
    for finding in findings:
        head = f"{finding.level:<7}  {finding.area:<{width}}  "
        text = visible(finding.finding) + (f"\n-> {visible(finding.remedy)}" if finding.remedy else "")
        if columns is not None and finding.area != "rows":
            text = "\n".join(_wrapped(line, columns - len(head)) for line in text.splitlines())
        lines.append(head + textwrap.indent(text, " " * len(head)).lstrip())
    return "\n".join(lines)


def _wrapped(line: str, columns: int) -> str:
    return textwrap.fill(line, max(columns, 40), break_long_words=False, break_on_hyphens=False)
