"""What can go wrong with a task's data."""


class DataError(ValueError):
    """A task's data are missing, damaged or cannot be fetched.

    The message stands alone: it names the file, what was expected, what was found and what to do,
    so that a command line can print it without a traceback.
    """
