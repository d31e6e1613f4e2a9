"""Errors that a person can act on; the command line prints them without a traceback."""


class ExperimentError(Exception):
    """Base of all errors that say what the user can do about them."""


class MissingDataError(ExperimentError):
    """A data set is not where it was looked for."""


class SettingError(ExperimentError, ValueError):
    """A setting does not fit the data."""


class ConfigMismatchError(ExperimentError):
    """A run directory belongs to another configuration."""


class DivergedError(ExperimentError):
    """A loss or gradient became infinite or not a number."""
