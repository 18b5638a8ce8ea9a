"""The one exception that users are meant to read."""

__all__ = ["LTIError"]


class LTIError(Exception):
    """Input that cannot be used: what was got, what was expected, what to do next.

    The command line prints it without a traceback and exits with status 2.
    """
