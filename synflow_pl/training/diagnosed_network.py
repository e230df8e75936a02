"""Diagnose the pruned network of a fit, and report its diagnosis."""

from __future__ import annotations

from dataclasses import dataclass

from synflow_pl.diagnosis import Diagnosis, MaskHistory
from synflow_pl.masks import Masks
from synflow_pl.training.mask_chooser import Fit, MaskChooser
from synflow_pl.training.pruning_report import diagnose_rounds

__all__ = ["DiagnosedNetwork"]


@dataclass(frozen=True)
class DiagnosedNetwork:
    """Pruned network of a fit with its diagnosis, made by :meth:`diagnose`.

    Attributes:
        fit: Network that is pruned, and its training.
        masks: Masks of the network.
        chooser: Chooser of the masks, which has the inputs of the network and notes of the pruner.
        diagnosis: Diagnosis of the network.
    """

    fit: Fit
    masks: Masks
    chooser: MaskChooser
    diagnosis: Diagnosis

    @classmethod
    def diagnose(
        cls,
        fit: Fit,
        masks: Masks,
        chooser: MaskChooser,
        history: MaskHistory | None,
        spectra: bool,
    ) -> DiagnosedNetwork:
        """Diagnose a network on rank 0, for every rank; every rank has to call this method.

        Args:
            fit: Network that is pruned, and its training.
            masks: Masks of the network, which are applied already.
            chooser: Chooser of the masks.
            history: History of the masks over the rounds, or ``None``.
            spectra: Whether to compute spectra, as in :func:`synflow_pl.diagnose`.
        """

        def diagnose() -> Diagnosis:
            return diagnose_rounds(fit.network, masks, chooser.example(fit), history, spectra)

        return cls(fit, masks, chooser, fit.ranks.run_on_rank_zero(diagnose))

    def show(self, how: str, when: str) -> None:
        """Print the diagnosis, and log it with the masks and the recorded rounds.

        Args:
            how: Subject and verb of the first message, such as ``"SynFlow kept"``.
            when: End of the first message, such as ``" in 3.0 s"``.
        """
        fit, inputs, notes = self.fit, self.chooser.inputs, self.chooser.notes
        fit.report.show(
            fit.trainer, fit.network, self.masks, self.diagnosis, inputs, how, when, notes
        )

    def show_update(self, fraction: float) -> None:
        """Log the diagnosis after an update of the masks.

        Args:
            fraction: Fraction of the kept weights of each layer that was dropped.
        """
        self.fit.report.show_update(self.fit.trainer, self.diagnosis, fraction)

    def check_collapse(self, on_collapse: str, advice: str = "") -> None:
        """Raise an error or issue a warning if the network or a layer has collapsed.

        Args:
            on_collapse: ``"error"`` or ``"warn"``, for a network that is disconnected.
            advice: Advice that is added to the message on a network that is disconnected.

        Raises:
            DeadNetwork: If no path of kept weights connects input and output, and ``on_collapse``
                is ``"error"``.
        """
        self.fit.report.check_collapse(self.diagnosis, on_collapse, advice)
