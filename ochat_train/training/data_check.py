"""Whether the data of a run is what was prepared: checked in the background, while the model is loaded.

One rank of each host reads the prepared files and compares their hashes; rank 0 also compares the raw sources with
those that they were prepared from. What has not been touched since it was last read is not read again.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.prepared.dataset import MANIFEST, Manifest
from data_pipeline.prepared.integrity import VerifiedData, verify
from ochat_train.distributed.agreement import on_every_rank, require_agreement
from ochat_train.distributed.background import Background, wait_for_all
from ochat_train.distributed.ranks import Ranks, gathered
from ochat_train.recipe.preparation import check_sources
from ochat_train.recipe.recipe import Recipe
from ochat_train.system.messages import print_message

_FIRST_SECONDS = 1.0  # to find a fault in little or well-known data before anything else is done


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """A check that has begun. work: of this rank; None where another rank of its host does it."""

    ranks: Ranks
    work: Background[VerifiedData] | None

    def finish(self) -> VerifiedData:
        """Wait for the check on all hosts, and return what rank 0 found, on all ranks.

        Every rank calls it together. Raises UserError on all of them for a file that has changed, and where the hosts
        have other files.
        """
        wait_for_all(self.ranks, self.work)
        found = self._results()
        first = found[0]
        assert first is not None, "rank 0 is the first of its host"
        own = found[self.ranks.rank] or first
        require_agreement(self.ranks, {"the content of the prepared data": own.content[:12]})
        if self.ranks.is_main and first.warning:
            print_message(f"warning: {first.warning}")
        return first

    def _results(self) -> list[VerifiedData | None]:
        work = self.work
        return gathered(self.ranks, on_every_rank(self.ranks, lambda: None if work is None else work.result()))


def start_data_check(recipe: Recipe, manifest: Manifest, ranks: Ranks) -> DataCheck:
    """Begin to check. Every rank calls it together. Raises UserError on all of them for what is found at once."""
    prepared_dir = Path(recipe.data.prepared_dir)

    def work(progress: Callable[[int], None]) -> VerifiedData:
        verified = verify(prepared_dir, manifest, progress=progress)
        if ranks.is_main:
            check_sources(recipe, manifest, progress=progress)
        return verified

    if ranks.is_main:
        import datasets  # noqa: F401  (it would be imported in the thread, while this one imports transformers)
    background = None
    if _checks_for_its_host(prepared_dir, ranks):
        timeout = recipe.train.hang_timeout_seconds
        background = Background(work, place=str(prepared_dir), timeout_seconds=timeout)
    check = DataCheck(ranks=ranks, work=background)
    if wait_for_all(ranks, background, most_seconds=_FIRST_SECONDS):
        check._results()
    return check


def _checks_for_its_host(prepared_dir: Path, ranks: Ranks) -> bool:
    """Whether this is the first rank that sees these files on this host. Containers of one host may see others."""
    status = on_every_rank(ranks, (prepared_dir / MANIFEST).stat)
    seen = gathered(ranks, (socket.gethostname(), status.st_dev, status.st_ino))
    return seen.index(seen[ranks.rank]) == ranks.rank
