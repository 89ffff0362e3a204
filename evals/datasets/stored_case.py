"""StoredCase: a case whose gold is in a table and whose images, where there are any, lie in a case folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evals.datasets.eval_case import EvalCase, FollowUp, SearchSpace
from models.case import Case
from models.clinical_record import ClinicalRecord
from models.protocol import Protocol


class StoredCase(EvalCase):
    """See the module."""

    def __init__(
        self,
        case_id: str,
        record: ClinicalRecord,
        gold: Mapping[str, Protocol],
        space: SearchSpace,
        case: Case | None = None,
        given: Protocol | None = None,
        survival: FollowUp | None = None,
    ) -> None:
        """Args: gold: by variant. case: the case folder, None without images. The others: see `EvalCase`."""
        super().__init__(case_id, record, given, None, "real" if case is None else case.origin, space)
        self._gold = dict(gold)
        self._case = case
        self._survival = survival

    @property
    def gold(self) -> Mapping[str, Protocol]:
        """Gold protocol by variant."""
        return self._gold

    @property
    def survival(self) -> FollowUp | None:
        """Follow-up under `given`; None where it is not known."""
        return self._survival

    @property
    def has_image(self) -> bool:
        """Whether there is a case folder."""
        return self._case is not None

    def write(self, folder: Path) -> Path | None:  # noqa: ARG002 (nothing is generated: the folder is there)
        """See `EvalCase.write`: the folder as it was imported."""
        return None if self._case is None else self._case.path


def plannable(folder: Path) -> Case | None:
    """The case in a folder, where there is one with a labelled tumour to plan on.

    Raises:
        CaseError: There is a case, and it is damaged or of another schema version.
    """
    if not (folder / "case.json").is_file():
        return None
    case = Case.load(folder, verify=False)
    return case if case.labels is not None else None
