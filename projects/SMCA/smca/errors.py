"""The exceptions that a program tells in one line."""

import re

# Control characters, which terminals obey, and halves of characters, which no file can be named.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class ConfigError(ValueError):
    """A key that does not exist or a value that cannot work; the message names the key."""


class DatasetError(ValueError):
    """A dataset that is missing or cannot be used; the message names the file and the place."""


class CheckpointError(ValueError):
    """A file that is no checkpoint, or one that does not fit; the message names file and tensor."""


class LoaderError(RuntimeError):
    """A loader process has ended, or cannot hand over what it has read."""


class WorkerError(RuntimeError):
    """A worker has ended or does not answer, and the others cannot go on."""


class NonFiniteLossError(FloatingPointError):
    """Losses are infinite or NaN, and the model has not been updated with them; the message names
    them and the images.
    """


class ExportError(ConfigError):
    """A model that a format cannot hold, or a file that is not the model; the message says why."""
