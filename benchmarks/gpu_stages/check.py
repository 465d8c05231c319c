"""What each stage of a GPU check works with."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from fvcore.common.config import CfgNode
from measuring import ROOT, Row
from workload import Setting

from smca.analysis.host import NATIVE

from .record import Record

Any_ = TypeVar("Any_")
# Part of its time after which a stage begins nothing more, so that it is seldom cut off.
_BEGINS_UNTIL = 0.9
# A detector that a CPU trains in a moment.
TINY = (
    *("MODEL.RESNETS.DEPTH", 10, "MODEL.RESNETS.NORM", "FrozenBN"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.SMCA.HIDDEN_DIM", 32, "MODEL.SMCA.NHEADS", 4, "MODEL.SMCA.NUM_QUERIES", 10),
    *("MODEL.SMCA.DIM_FEEDFORWARD", 32, "MODEL.SMCA.DECODER.NUM_LAYERS", 2),
    *("MODEL.SMCA.ENCODER.NUM_LAYERS", 1),
)


class Check:
    """The device, the time that is left, and where rows go."""

    def __init__(self, device: str, *, tiny: bool, record: Record, limit: float):
        """
        Args:
            device: as torch names it.
            tiny: everything at sizes that a CPU manages in seconds.
            record: whose last stage is this one.
            limit: seconds that this stage has.
        """
        self.device = torch.device(device)
        self.tiny = tiny
        self.record = record
        self.until = time.monotonic() + _BEGINS_UNTIL * limit
        self.left: list[str] = []

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def pick(self, real: Any_, tiny: Any_) -> Any_:
        """What is worked with: ``tiny`` in a rehearsal."""
        return tiny if self.tiny else real

    def config(self, name: str, *changes: object) -> CfgNode:
        """A config of configs/."""
        tiny = TINY if self.tiny else ()
        return NATIVE.read(str(ROOT / f"configs/{name}.yaml"), [*tiny, *changes])

    def setting(self, batch: int, precision: str) -> Setting:
        """So many images, of the size that training and evaluation have at most."""
        size = self.pick((800, 1333), (64, 96))
        return Setting(size, self.pick(batch, 2), precision, str(self.device))

    def attempt(
        self, table: str, work: Callable[[], Row | Iterable[Row]], **case: object
    ) -> list[Row]:
        """Add what ``work`` returns to the record, or why it failed; nothing if time is over.

        Args:
            table: of the report.
            work: measures; it returns a row or several.
            case: columns that each row begins with.

        Returns:
            the rows.
        """
        if time.monotonic() > self.until:
            self.left.append(" ".join([table, *map(str, case.values())]))
            return []
        rows = []

        def add(row: Row) -> None:
            rows.append({"table": table, **case, **row})
            self.record.add(rows[-1])

        try:
            found = work()
            for row in [found] if isinstance(found, dict) else found:
                add(row)
        except Exception as error:
            traceback.print_exc()
            add({"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]})
        self.free()
        return rows

    def free(self) -> None:
        """Give memory back that nothing holds any more."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


def holds(value: float, limit: float) -> Row:
    """Columns of a value that may be so large."""
    return {"value": value, "limit": limit, "passed": value <= limit}
