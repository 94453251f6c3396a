"""claudebox: Claude Code in a bubblewrap sandbox, described by a launch plan that can be read."""

__version__ = "0.1.0"


class Failure(Exception):
    """What ends a command: one line on stderr and a non-zero exit status.

    `what` says what is wrong, `todo` what to do about it; `status` is the exit status
    (1 for a refusal, 2 for wrong usage).
    """

    def __init__(self, what: str, todo: str, status: int = 1):
        super().__init__(what, todo)
        self.what = what
        self.todo = todo
        self.status = status

    def __str__(self) -> str:
        return f"{self.what}: {self.todo}"
