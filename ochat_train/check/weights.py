"""Whether the base's files hold what its config.json describes, from their headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from data_pipeline.errors import UserError
from data_pipeline.text_rules import some_names
from ochat_train.check.findings import Finding, ok, warning
from ochat_train.check.recipe_facts import RecipeFacts
from ochat_train.model.base_class import text_config
from ochat_train.model.weights.compare import (
    WeightReport,
    check_report,
    check_second_set,
    check_stored_twice,
    compare_weights,
    refuse_quantised,
)
from ochat_train.model.weights.files import Headers, hub_headers, local_weight_files, read_headers, second_set
from ochat_train.model.weights.load import weight_file_name
from ochat_train.model.weights.token_rows import (
    PADDING_REMEDY,
    ControlTokens,
    check_pieces,
    padding_text,
    untrained_in_files,
)

_AREA = "weights"


def check_weights(facts: RecipeFacts) -> Iterator[Finding]:
    """Names, shapes and dtypes of the base's weights, and the rows of control tokens."""
    settings = facts.recipe.model
    config, place = facts.config, settings.path
    num_rows = text_config(config).vocab_size
    if place is None:
        check_pieces(_control_tokens(facts), num_rows=num_rows, base=None)
        yield ok(_AREA, "model.config", "random weights")
        return
    adapter = facts.recipe.adapter
    refuse_quantised(config, place, for_qlora=adapter is not None and adapter.type == "qlora")
    named = weight_file_name(config)
    files = local_weight_files(settings, named=named)
    try:
        headers = read_headers(files) if files is not None else hub_headers(place, settings.revision)
    except UserError:
        raise
    except Exception as error:  # whatever the HTTP library raises without a network
        reason = f"not looked at: the Hub did not give their headers ({type(error).__name__})"
        yield warning(_AREA, place, reason, "the run looks at them after the download")
        return
    report = compare_weights(config, headers)
    check_report(report, config, place)
    check_pieces(_control_tokens(facts), num_rows=num_rows, base=place)
    yield ok(_AREA, place, _text(report, headers))
    if files is None:
        yield warning(_AREA, place, "not in the cache: values were not looked at", "the run does so before it trains")
        return
    check_stored_twice(report, headers, place)
    check_second_set(headers, second_set(settings, named=named), place)
    yield from _check_rows(facts, headers)


def _control_tokens(facts: RecipeFacts) -> ControlTokens:
    spec, tokens = facts.tokenizer, facts.template.control_tokens
    return ControlTokens.of(Tokenizer.from_str(spec.backend), tokens, bos_token=spec.bos_token)


def _text(report: WeightReport, headers: Headers) -> str:
    kinds = Counter(header.dtype for header in headers.values())
    text = f"{len(headers):,} tensors ({', '.join(sorted(kinds))}) with the names and shapes of the model"
    if report.tied:
        text += ", embedding and head tied"
    if report.ignored:
        text += f"; `transformers` leaves out {len(report.ignored)}: {some_names(report.ignored)}"
    return text


def _check_rows(facts: RecipeFacts, headers: Headers) -> Iterator[Finding]:
    """The rows of control tokens that the base did not train."""
    control = _control_tokens(facts)
    if facts.recipe.adapter is None and (padding := padding_text(facts.model, control)) is not None:
        yield warning(_AREA, str(facts.recipe.model.path), padding, PADDING_REMEDY)
    found: Sequence[str] = untrained_in_files(facts.model, headers, control)
    if found:
        text = f"the base did not train the rows of {', '.join(found)}: they start from the mean row"
        yield ok(_AREA, facts.recipe.model.path, text)
