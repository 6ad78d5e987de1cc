"""What can go wrong for a user. Each message says what happened, what was seen and what to try.

The command line catches `HeadliftError`, prints its message without a traceback and exits with `exit_code`.
Anything else that escapes is a bug of ours.
"""

import pickle

UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, LookupError, AttributeError, pickle.UnpicklingError)
"""What comes of reading PyTorch's files, by `weights_only`, where they are damaged or of another kind."""


class HeadliftError(Exception):
    """Base of every error that a user can cause and can mend."""

    exit_code = 2


class PhotoError(HeadliftError):
    """The photo cannot be read or is not usable as a picture."""


class FaceError(HeadliftError):
    """No usable face: none found, too small, or turned too far."""


class CheckpointError(HeadliftError):
    """A checkpoint is damaged, unsafe, or of another shape than expected."""


class WeightsError(HeadliftError):
    """Weights that are needed are not on this machine."""


class HeadFileError(HeadliftError):
    """A head file is damaged or its base generator is missing."""


class OutputError(HeadliftError):
    """The place for the results cannot be written, or something is in the way."""


class MeshError(HeadliftError):
    """There is no surface to take out of the volume."""


class DeviceError(HeadliftError):
    """The device asked for does not exist here."""


class ConfigError(HeadliftError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(HeadliftError):
    """A data set, or what one is made from, is missing, damaged or of another form than expected."""


class InversionError(HeadliftError):
    """An optimisation went astray."""
