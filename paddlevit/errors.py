"""Mistakes that a user can mend. The command line prints their message and exits with code 2, without a traceback."""


class UserError(ValueError):
    """Names the file, key or line at fault, its value, and what is allowed."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named does not exist."""
