"""The held-out conversations of a prepared dataset, packed as an evaluation reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.plan.packing import Packs, pack
from data_pipeline.prepared.dataset import Manifest, PreparedSplit, open_split
from ochat_train.model.batch import PackShape


@dataclass(frozen=True, kw_only=True)
class HeldOutData:
    """The held-out splits of a prepared dataset, packed. shape: of the packs of both."""

    manifest: Manifest
    validation: PreparedSplit
    others: PreparedSplit
    validation_packs: Packs
    others_packs: Packs
    shape: PackShape

    @property
    def num_tokens(self) -> int:
        """Tokens that one validation reads, padding included."""
        return self.shape.pack_length * (len(self.validation_packs) + len(self.others_packs))


def held_out_data(prepared_dir: Path, manifest: Manifest, *, pack_length: int) -> HeldOutData:
    """Open and pack the held-out splits. The packs are the same at every validation, on any number of ranks.

    Raises DamagedDataError for held-out rows that are not those of the manifest.
    """
    validation = open_split(prepared_dir, "validation", manifest)
    others = PreparedSplit(prepared_dir, "conditions")  # the manifest does not count these
    packs = [_packs(split, pack_length) for split in (validation, others)]
    shape = PackShape.holding(
        pack_length=pack_length,
        longest=max(int(split.num_tokens.max(initial=1)) for split in (validation, others)),
        max_conversations=max(int(np.diff(found.offsets).max(initial=0)) for found in packs),
    )
    return HeldOutData(
        manifest=manifest,
        validation=validation,
        others=others,
        validation_packs=packs[0],
        others_packs=packs[1],
        shape=shape,
    )


def _packs(split: PreparedSplit, pack_length: int) -> Packs:
    if not len(split):
        return Packs(rows=np.zeros(0, np.int64), offsets=np.zeros(1, np.int64))
    return pack(split.num_tokens, capacity=pack_length, rng=np.random.default_rng(0))
