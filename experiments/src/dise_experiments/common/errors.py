"""Errors whose message alone tells a user what to do."""


class UserError(ValueError):
    """Something that the user of an experiment can mend: the command line prints the message without a traceback."""


class DataError(UserError):
    """A task's data are missing, damaged or cannot be fetched.

    The message names the file, what was expected, what was found and what to do.
    """
