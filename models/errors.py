"""The one error hierarchy: every failure that a user can cause or mend is a `MewmError`.

The message is one sentence for the person who reads it: what is wrong, what was found, what to do. The command line
prints it and exits with `exit_code`; anything that is not a `MewmError` is a bug and keeps its traceback.
"""

from __future__ import annotations


class MewmError(Exception):
    """Base of every error with a sentence for the user."""

    exit_code: int = 1


class InputError(MewmError):
    """Something that the user handed in can't be used."""

    exit_code = 2


class UnknownItemError(InputError):
    """A drug or embolic that no formulary knows."""


class VolumeError(InputError):
    """An image that is not a usable CT volume in HU."""


class MaskError(InputError):
    """A label volume that does not fit its image, or that marks no tumour."""


class SeriesChoiceError(InputError):
    """A folder holds several series or phases and the user has to choose one."""


class RecordError(InputError):
    """A clinical record with an unknown field, a missing unit or an impossible value."""


class CaseError(InputError):
    """A case folder that is missing, damaged, of another schema version, or changed since it was read."""


class WeightsError(MewmError):
    """Model weights that are missing, damaged or of another preset."""

    exit_code = 3


class RunError(MewmError):
    """A run folder that can't be written, is of another version, or belongs to another case."""

    exit_code = 4


class ToolError(MewmError):
    """A tool was called with arguments that it can't serve."""

    exit_code = 5


class TransientToolError(ToolError):
    """A device hiccup (out of memory, lost device): the node's retry policy may try once more."""


class PlanningError(MewmError):
    """The search can't go on under these settings (empty action set, no budget)."""

    exit_code = 2


class ApprovalError(InputError):
    """An answer to an approval gate that does not fit the plan that waits."""


class BackendError(MewmError):
    """A language-model endpoint that can't be used: not configured, not reached, or it refused the request.

    Attributes:
        failures: What went wrong on the way, one sentence each, in order.
        requests: HTTP requests that were sent for nothing.
        input_tokens: Tokens read for nothing, as far as the endpoint said.
        output_tokens: Tokens written for nothing, as far as the endpoint said.
        cost_usd: List price of those tokens; None where it is not known.
    """

    exit_code = 7

    def __init__(
        self,
        message: str,
        *,
        failures: tuple[str, ...] = (),
        requests: int = 0,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cost_usd: float | None = None,
    ) -> None:
        super().__init__(message)
        self.failures = failures
        self.requests = requests
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.cost_usd = cost_usd


class InvalidAnswerError(BackendError):
    """A language model never gave an answer that fits the schema and the checks, however often it was asked."""


class DownloadError(MewmError):
    """Data that did not arrive whole, or that the disk has no room for."""

    exit_code = 8


class RunStopped(MewmError):
    """The run was stopped on purpose (Ctrl-C, a stop button) and can be resumed."""

    exit_code = 130
