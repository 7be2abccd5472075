"""Errors whose message alone tells a user what to do."""


class UserError(ValueError):
    """An error that the user of an experiment can correct; the command line prints its message without a traceback."""


class DataError(UserError):
    """A task's data are missing, damaged or cannot be downloaded.

    The message names the file, what was expected, what was found and what to do.
    """
