"""What only the harness knows: the true risk of every allowed protocol of a phantom patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.phantom.cohort import all_protocols
from models.phantom.patient import Patient
from models.phantom.response import respond
from models.protocol import Protocol
from tools.check_rules import check_rules
from tools.workspace import Workspace


@dataclass(frozen=True)
class RiskTable:
    """True log hazard of every protocol that the rules allow for one patient."""

    protocols: tuple[Protocol, ...]
    log_hazard: npt.NDArray[np.float64]

    @property
    def best(self) -> Protocol:
        """The allowed protocol of lowest true risk."""
        return self.protocols[int(self.log_hazard.argmin())]

    def regret(self, protocol: Protocol) -> float:
        """True risk above the best allowed protocol, as a share of worst minus best (0 best, 1 worst).

        Doses are ignored: the table holds reference doses.

        Raises:
            KeyError: The protocol is not allowed for this patient, or outside the horizons.
        """
        bare = Protocol(drugs=protocol.drugs, embolics=protocol.embolics)
        try:
            index = self.protocols.index(bare)
        except ValueError:
            raise KeyError(protocol.key) from None
        low, high = float(self.log_hazard.min()), float(self.log_hazard.max())
        return float((self.log_hazard[index] - low) / (high - low))

    @property
    def regrets(self) -> npt.NDArray[np.float64]:
        """Regret of every allowed protocol."""
        low, high = self.log_hazard.min(), self.log_hazard.max()
        return np.asarray((self.log_hazard - low) / (high - low))


def allowed_protocols(
    case_id: str, workspace: Workspace, action_set: str = "policy", drug_horizon: int = 3, embolic_horizon: int = 2
) -> tuple[Protocol, ...]:
    """The protocols of an action set that no blocking rule forbids for the case, in a fixed order."""
    candidates = list(all_protocols(action_set, drug_horizon, embolic_horizon))
    verdicts = check_rules(case_id, [p.key for p in candidates], workspace=workspace).verdicts
    return tuple(p for p, verdict in zip(candidates, verdicts, strict=True) if verdict.allowed)


def true_risks(patient: Patient, protocols: tuple[Protocol, ...]) -> RiskTable:
    """The risk table of a patient over allowed protocols."""
    return RiskTable(protocols, np.array([respond(patient, protocol).log_hazard for protocol in protocols]))
