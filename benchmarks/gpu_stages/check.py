"""The interface between a GPU check and its stages: device, sizes, time limit and record."""

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

T = TypeVar("T")
# After this share of its time, a stage begins no further measurement, so that it is seldom cut off.
_BEGINS_UNTIL = 0.9
# Config values of a detector that a CPU trains quickly.
TINY = (
    *("MODEL.RESNETS.DEPTH", 10, "MODEL.RESNETS.NORM", "FrozenBN"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.SMCA.HIDDEN_DIM", 32, "MODEL.SMCA.NHEADS", 4, "MODEL.SMCA.NUM_QUERIES", 10),
    *("MODEL.SMCA.DIM_FEEDFORWARD", 32, "MODEL.SMCA.DECODER.NUM_LAYERS", 2),
    *("MODEL.SMCA.ENCODER.NUM_LAYERS", 1),
)


class Check:
    """The device, the time limit and the record of a stage.

    Attributes:
        until: the moment, in :func:`time.monotonic`'s seconds, after which no measurement begins.
        left: names of the measurements for which no time was left.
    """

    def __init__(self, device: str, *, tiny: bool, record: Record, limit: float):
        """
        Args:
            device: torch's name of the device.
            tiny: whether to rehearse at sizes that take a CPU only seconds.
            record: the record whose last stage is this one.
            limit: time of this stage in seconds.
        """
        self.device = torch.device(device)
        self.tiny = tiny
        self.record = record
        self.until = time.monotonic() + _BEGINS_UNTIL * limit
        self.left: list[str] = []

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def pick(self, real: T, tiny: T) -> T:
        """Return ``tiny`` in a rehearsal, and ``real`` otherwise."""
        return tiny if self.tiny else real

    def config(self, name: str, *changes: object) -> CfgNode:
        """Return a config of configs/ with changes, and with a tiny model in a rehearsal."""
        tiny = TINY if self.tiny else ()
        return NATIVE.read(str(ROOT / f"configs/{name}.yaml"), [*tiny, *changes])

    def setting(self, batch: int, precision: str) -> Setting:
        """Return a setting with images of the largest size in training and evaluation."""
        size = self.pick((800, 1333), (64, 96))
        return Setting(size, self.pick(batch, 2), precision, str(self.device))

    def attempt(
        self, table: str, work: Callable[[], Row | Iterable[Row]], **case: object
    ) -> list[Row]:
        """Add the rows that ``work`` returns to the record, or a row with its error.

        If the stage's time is over, this only notes that the measurement was left out.

        Args:
            table: name of the report's table.
            work: performs the measurement, and returns one or several rows.
            case: first columns of each row.

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
        """Release unused memory to the system and the device."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


def holds(value: float, limit: float) -> Row:
    """Return the columns of a value that passes if it is at most ``limit``."""
    return {"value": value, "limit": limit, "passed": value <= limit}
