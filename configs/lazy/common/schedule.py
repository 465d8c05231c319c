"""The learning rate is divided by 10 once."""

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler


def step_once(*, at, of):
    """The factor of the learning rate: 1.0, and 0.1 after ``at`` of ``of`` epochs.

    Any other unit does as well: the training is train.max_iter iterations long, whatever ``of``.
    """
    return L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[at], num_updates=of)


lr_multiplier_50ep = step_once(at=40, of=50)
lr_multiplier_108ep = step_once(at=80, of=108)
