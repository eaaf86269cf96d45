"""What can go wrong that the user can mend, and the exit code that the command line gives it."""


class GraddiagError(Exception):
    """A problem the user can fix; the message says what was wrong, what is allowed, and what to do."""

    exit_code = 3


class UsageError(GraddiagError):
    """An option or argument that cannot be meant: unknown name, impossible value."""

    exit_code = 2


class DataError(GraddiagError):
    """Data or a store that cannot be used, or two tables that may not be compared."""

    exit_code = 3


class ResourceError(GraddiagError):
    """Not enough memory or disk."""

    exit_code = 4
