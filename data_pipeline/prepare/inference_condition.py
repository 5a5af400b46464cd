"""The condition that exports prompt with unless a user gives another one."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.errors import UserError
from data_pipeline.prepare.job import PrepareJob
from data_pipeline.prepared.dataset import PreparedClass


def inference_condition(job: PrepareJob, classes: Sequence[PreparedClass]) -> str:
    """The recipe's condition; else the template's own if a class has it; else that of the class with the most weight.

    Classes whose weights are in their rows are compared by their mean weight per supervised token. Raises UserError for
    a condition of the recipe that no class has.
    """
    conditions = [row.condition for row in classes]
    if job.inference_condition is not None:
        if job.inference_condition not in conditions:
            raise UserError(
                "model.inference_condition",
                f"no class has condition `{job.inference_condition}`",
                f"conditions: {conditions}",
            )
        return job.inference_condition
    if job.template.inference_condition in conditions:
        return job.template.inference_condition
    total_tokens = sum(row.supervised_tokens for row in classes)

    def weight(row: PreparedClass) -> float:
        if row.weight is not None:
            return row.weight
        return round(row.weight_share * total_tokens / max(row.supervised_tokens, 1), 6)

    return max(classes, key=weight).condition
