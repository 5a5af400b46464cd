"""A prompt format in a file of the user's, read as strictly as a recipe."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from data_pipeline.errors import Problem, UserError, UserErrors
from data_pipeline.prompt.template import Template
from data_pipeline.prompt.templates import TEMPLATES
from ochat_train.recipe.problems import describe
from ochat_train.recipe.strict_yaml import MOST_CHARACTERS, parse


def load_template(path: Path) -> Template:
    """Read a template. Raises UserError with every problem found, each with its line, value and rule."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)  # `parse` refuses a longer one
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError("model.template", f"{path} cannot be read: {reason}") from None
    document = parse(text, name=str(path))
    if not isinstance(document.value, dict):
        raise UserError(path, "a template is a mapping of keys (name, control_tokens, turns, ...)")
    problems = list(document.problems)
    try:
        template = Template.model_validate(document.value)
    except ValidationError as error:
        problems += [describe(problem, document, root=Template) for problem in error.errors()]
    else:
        if template.name in TEMPLATES and template != TEMPLATES[template.name]:
            place = document.place(("name",))
            problems.append(Problem(place=place, problem=f"`{template.name}` is a built-in template; use another name"))
    if problems:
        raise UserErrors(path, f"{len(problems)} problem{'s' if len(problems) > 1 else ''}", problems)
    return template
